"""One reader for files and arrays in D4RL's layout, D4RL's names and Minari's ids."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmdpd_torchrl.data.d4rl import check_file, iter_d4rl_arrays, iter_d4rl_file
from llmdpd_torchrl.data.download import fetch_d4rl
from llmdpd_torchrl.data.minari import minari_metadata_file, read_minari
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.data.recording import ActionRange, Recording
from llmdpd_torchrl.utils.cache import locked_folder
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_folder_atomic

_SUFFIXES = (".hdf5", ".h5")
#: Time limits of the environments of D4RL's first files, which do not mark time-outs.
_TIME_LIMITS = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "ant"), 1000)
#: How much of a file is read at once when it is converted into a folder.
_BLOCK_BYTES = 1 << 25
#: Of converted folders; whatever changes their files changes it.
_FOLDER_VERSION = 2


def load_episodes(
    sources: Any,
    *,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: ActionRange | None = None,
    cache: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    verify: bool = True,
    progress: bool = True,
) -> OfflineDataset:
    """Load recorded episodes of one or several sources, each a task of its own.

    A source is the path of an HDF5 file in D4RL's layout (``data/hopper_medium.hdf5``), a name of
    D4RL's (``hopper-medium-v2``, downloaded once), or an id of Minari's
    (``mujoco/hopper/medium-v0``, local or downloaded by Minari). A name with a slash that is no
    file is an id of Minari's; the prefixes ``d4rl:`` and ``minari:`` are explicit. It may also be
    an environment of the package d4rl, or any object with ``get_dataset()``, or a mapping of arrays
    as that returns; their arrays are shared if they need no casting.

    The values are checked and cast here, see :class:`~llmdpd_torchrl.data.Recording`.

    With ``root``, files need not fit into memory: the first call converts them, block by block,
    into a memory-mapped TensorDict in a folder below ``root``, which later calls map again. The
    folder's name depends on the content of the files and these options; folders of earlier contents
    can be deleted.

    Args:
        sources: one, or several of one kind of environment.
        max_episode_steps: see :func:`~llmdpd_torchrl.data.d4rl.read_d4rl_file`; default for an
            environment: its own.
        task_key: the column of the source's infos with the task ids.
        infos: further columns to load, under ``"info"``.
        action_range: the lowest and the highest value of the actions, which are mapped to [-1, 1];
            or two lists with those of each component. Default: [-1, 1], or the bounds of a Minari
            dataset's action space.
        cache: folder of D4RL's files; default: in the user's cache, see :func:`fetch_d4rl`.
        root: folder of converted data; default: they are read into memory.
        verify: compare the hash of each mapped file, which reads it once.
        progress: whether downloads, conversion and verification display a progress bar.

    Raises:
        ConfigError: if a name is unknown, a package is missing, ``root`` cannot be used, or the
            data do not fit into memory.
        DataError: if a source is missing, damaged or does not fit the others.

    Examples:
        >>> import numpy as np
        >>> arrays = {"observations": np.zeros((3, 2)), "actions": np.zeros((3, 1))}
        >>> arrays |= {"rewards": np.ones(3), "terminals": np.array([False, True, True])}
        >>> load_episodes(arrays, max_episode_steps=100).trajectory_return.tolist()
        [2.0, 1.0]
    """
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        sources = [sources]
    options = {
        "max_episode_steps": max_episode_steps,
        "task_key": task_key,
        "infos": list(infos),
        "action_range": action_range and [np.asarray(end).tolist() for end in action_range],
    }
    found = [_find(source, options, cache, progress) for source in sources]
    if root is None:
        return OfflineDataset.from_recordings(
            itertools.chain.from_iterable(source.read(None) for source in found)
        )
    identities = [source.identity() for source in found]
    key = json.dumps([_FOLDER_VERSION, identities, options])
    folder = Path(root) / _folder_name([source.name for source in found], key)

    def convert(part: Path) -> None:
        recordings = itertools.chain.from_iterable(source.read(_BLOCK_BYTES) for source in found)
        OfflineDataset.from_recordings(recordings, folder=part, progress=progress)

    fresh = False
    if not folder.is_dir():
        with locked_folder(root, "converted data", "root"):
            if not folder.is_dir():  # another process may have made it in the meantime
                write_folder_atomic(folder, convert)
                fresh = True
    return OfflineDataset.load_mapped(folder, verify=verify and not fresh, progress=progress)


@dataclass
class _Source:
    """The name of a source, its identity and its reader."""

    name: str
    identity: Callable[[], list[Any]]
    read: Callable[[int | None], Iterator[Recording]]


def _find(
    source: Any, options: Mapping[str, Any], cache: str | os.PathLike[str] | None, progress: bool
) -> _Source:
    if isinstance(source, Mapping) or callable(getattr(source, "get_dataset", None)):
        return _arrays(source, options)
    kind, name = _kind(source)
    if kind == "minari":
        chosen = {key: value for key, value in options.items() if key != "max_episode_steps"}
        return _Source(
            name,
            lambda: ["minari", name, *_stamp(minari_metadata_file(name))],
            lambda _: iter([read_minari(name, **chosen)]),
        )
    path, limit, called = Path(name), options["max_episode_steps"], None
    if kind == "d4rl":
        path, called = fetch_d4rl(name, cache, progress=progress), name
        limit = limit or _TIME_LIMITS.get(name.partition("-")[0])
    given = {**options, "max_episode_steps": limit}
    return _Source(
        called or path.stem,
        lambda: [kind, called, limit, *_stamp(path)],
        lambda block_bytes: iter_d4rl_file(
            path, name=called, block_bytes=block_bytes, progress=progress, **given
        ),
    )


def _arrays(source: Any, options: Mapping[str, Any]) -> _Source:
    """A mapping of arrays, or an object with ``get_dataset()``."""
    name, limit, attributes = "arrays", options["max_episode_steps"], {}
    if not isinstance(source, Mapping):
        spec = getattr(getattr(source, "spec", None), "id", None)
        name, attributes = spec or type(source).__name__, {"env_id": spec} if spec else {}
        limit = limit or getattr(source, "_max_episode_steps", None)

    def identity() -> list[Any]:
        raise ConfigError(
            f"{name}: root is for sources that are files; arrays are in memory: leave it out"
        )

    def read(_: int | None) -> Iterator[Recording]:
        arrays = source if isinstance(source, Mapping) else source.get_dataset()
        given = {**options, "max_episode_steps": limit}
        yield from iter_d4rl_arrays(arrays, name=name, source=name, attributes=attributes, **given)

    return _Source(name, identity, read)


def _kind(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The kind of a source (``file``, ``d4rl`` or ``minari``), and its path or name."""
    name = os.fspath(source)
    prefix, _, rest = name.partition(":")
    if prefix in ("d4rl", "minari"):
        return prefix, rest
    if isinstance(source, Path) or name.endswith(_SUFFIXES) or Path(name).exists():
        return "file", name
    return ("minari" if "/" in name else "d4rl"), name


def _stamp(path: Path) -> tuple[str, int, int]:
    """The identity of a file and its content: path, size, time of change."""
    check_file(path)
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _folder_name(names: Sequence[str], key: str) -> str:
    """A readable name that is unique for the key."""
    first = re.sub(r"[^A-Za-z0-9_.-]+", "-", names[0])[:80].strip(".-")
    others = f"-and-{len(names) - 1}-more" if len(names) > 1 else ""
    return f"{first}{others}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
