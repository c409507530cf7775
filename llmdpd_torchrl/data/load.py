"""One reader for files, folders and arrays of episodes, and for the names of public datasets."""

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
from torchrl.data.datasets import load_dataset, register_dataset
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.data.d4rl import check_file, iter_d4rl_arrays, iter_d4rl_file
from llmdpd_torchrl.data.download import fetch_d4rl
from llmdpd_torchrl.data.lerobot import INFO, fetch_lerobot, is_lerobot, iter_lerobot
from llmdpd_torchrl.data.manifest import MANIFEST_NAME
from llmdpd_torchrl.data.minari import minari_metadata_file, read_minari
from llmdpd_torchrl.data.npz import iter_npz_file
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.data.recording import ActionRange, Recording
from llmdpd_torchrl.data.replay import EpisodeExperienceReplay
from llmdpd_torchrl.utils.cache import locked_folder
from llmdpd_torchrl.utils.errors import ConfigError, DataError, first_line
from llmdpd_torchrl.utils.files import write_folder_atomic

_SUFFIXES = (".hdf5", ".h5", ".npz")
_PREFIXES = ("d4rl", "minari", "lerobot", "torchrl")
#: Between a source and the one of its tasks that is meant.
_TASK_MARK = "::"
#: Time limits of the environments of D4RL's first files, which do not mark time-outs.
_TIME_LIMITS = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "ant"), 1000)
#: How much of a file is read at once when it is converted into a folder.
_BLOCK_BYTES = 1 << 25
#: Where TorchRL's datasets have what D4RL's layout names.
_TORCHRL_KEYS: Mapping[str, Any] = {
    "observations": "observation",
    "actions": "action",
    "rewards": ("next", "reward"),
    "terminals": ("next", "terminated"),
    "timeouts": ("next", "truncated"),
    "next_observations": ("next", "observation"),
}
#: Of converted folders; whatever changes their files changes it.
_FOLDER_VERSION = 2


def load_episodes(
    sources: Any,
    *,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: ActionRange | None = None,
    keys: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    verify: bool = True,
    progress: bool = True,
) -> OfflineDataset:
    """Load recorded episodes of one or several sources, each a task of its own.

    A source is

    - a file with arrays in D4RL's layout, ``data/hopper_medium.hdf5`` or ``data/left.npz``, or a
      folder of such files;
    - the folder of a LeRobot dataset, or ``lerobot:OWNER/NAME`` on the Hub; of its columns the
      states and actions, and no pictures;
    - a name of D4RL's (``hopper-medium-v2``, downloaded once), or an id of Minari's
      (``mujoco/hopper/medium-v0``, local or downloaded by Minari). A name with a slash that is no
      file is an id of Minari's; the prefixes ``d4rl:`` and ``minari:`` are explicit;
    - ``torchrl:PREFIX:ID``, what TorchRL's ``load_dataset("PREFIX:ID")`` makes, read into memory;
    - an environment of the package d4rl, any object with ``get_dataset()``, or a mapping of arrays
      as that returns; their arrays are shared if they need no casting.

    ``SOURCE::TASK`` takes one of the tasks of a source that has several. With a mapping of names,
    ``{"left": ["a.npz", "b.npz"], "right": "c.npz"}``, all sources of a name are one task of it.

    The values are checked and cast here, see :class:`~llmdpd_torchrl.data.Recording`.

    With ``root``, files need not fit into memory: the first call converts them, block by block,
    into a memory-mapped TensorDict in a folder below ``root``, which later calls map again. The
    folder's name depends on the content of the files and these options; folders of earlier contents
    can be deleted.

    Args:
        sources: one, or several of one kind of environment, or a mapping of names to them.
        max_episode_steps: see :func:`~llmdpd_torchrl.data.d4rl.read_d4rl_file`; default for an
            environment: its own.
        task_key: the column of the source's infos with the task ids.
        infos: further columns to load, under ``"info"``.
        action_range: the lowest and the highest value of the actions, which are mapped to [-1, 1];
            or two lists with those of each component. Default: [-1, 1], or the bounds of a Minari
            dataset's action space.
        keys: other names of arrays, or columns, by those of D4RL's layout:
            ``{"observations": "obs"}``.
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
    options: dict[str, Any] = {
        "max_episode_steps": max_episode_steps,
        "task_key": task_key,
        "infos": list(infos),
        "action_range": action_range and [np.asarray(end).tolist() for end in action_range],
    }
    if keys:
        options["keys"] = dict(keys)
    found = [_find(one, options, cache, progress) for one in _listed(sources, keys or {})]
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


def episodes_replay(
    source: str,
    *,
    batch_size: int = 256,
    transform: Transform | None = None,
    seed: int | None = None,
    **options: Any,
) -> EpisodeExperienceReplay:
    """What TorchRL's ``load_dataset("episodes:SOURCE")`` returns: a replay buffer of the episodes.

    Args:
        source: as for :func:`load_episodes`.
        batch_size: transitions of a sample.
        transform: of samples.
        seed: of sampling.
        **options: of :func:`load_episodes`.

    Examples:
        >>> import tempfile
        >>> from torchrl.data.datasets import load_dataset
        >>> path = Path(tempfile.mkdtemp()) / "line.npz"
        >>> ends = np.array([False, False, True])
        >>> np.savez(path, observations=np.zeros((3, 2)), actions=np.zeros((3, 1)),
        ...          rewards=np.ones(3), terminals=ends, timeouts=~ends & False)
        >>> load_dataset(f"episodes:{path}", batch_size=5).sample()["observation"].shape
        torch.Size([5, 2])
    """
    transforms = () if transform is None else (transform,)
    return load_episodes(source, **options).replay_buffer(
        batch_size, transforms=transforms, seed=seed
    )


register_dataset("episodes", f"{__name__}:episodes_replay", replace=True)


# --- which sources ------------------------------------------------------------------------------


def _listed(sources: Any, keys: Mapping[str, str]) -> Iterator[tuple[str | None, Any]]:
    """Each source, folders taken apart, and the name of its task where it is given one."""
    if isinstance(sources, Mapping) and keys.get("observations", "observations") not in sources:
        if not sources:
            raise ConfigError("no source is named: give a file, a folder or arrays for each task")
        for name, some in sources.items():
            if not isinstance(some, Sequence) or isinstance(some, str):
                some = [some]
            if not some:
                raise ConfigError(f"task {name!r} has no source: give at least one")
            for each in some:
                yield from ((str(name), one) for one in _files(each))
        return
    several = isinstance(sources, Sequence) and not isinstance(sources, str)
    listed = list(sources) if several else [sources]
    for place, source in enumerate(listed):
        # Arrays have no name of their own, and tasks of one name would be one.
        name = f"arrays/{place}" if len(listed) > 1 and isinstance(source, Mapping) else None
        yield from ((name, one) for one in _files(source))


def _files(source: Any) -> list[Any]:
    """A source, or the files of one that is a folder of them."""
    if not isinstance(source, str | Path):
        return [source]
    folder, _, task = str(source).partition(_TASK_MARK)
    path = Path(folder)
    if not path.is_dir() or is_lerobot(path):
        return [source]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        hint = "give its tasks' files" if (path / MANIFEST_NAME).exists() else "give one that has"
        raise DataError(f"{path}: the folder has no {' or '.join(_SUFFIXES)} file; {hint}")
    return [f"{file}{_TASK_MARK}{task}" for file in files] if task else [*files]


@dataclass
class _Source:
    """The name of a source, its identity and its reader."""

    name: str
    identity: Callable[[], list[Any]]
    read: Callable[[int | None], Iterator[Recording]]


def _find(
    listed: tuple[str | None, Any],
    options: Mapping[str, Any],
    cache: str | os.PathLike[str] | None,
    progress: bool,
) -> _Source:
    """The reader of a source, which gives its task the listed name, if any."""
    name, source = listed
    task = ""
    if isinstance(source, str):
        source, _, task = source.partition(_TASK_MARK)
    found = _open(source, options, cache, progress)
    if name is None and not task:
        return found

    def identity() -> list[Any]:
        return [*found.identity(), name, task]

    def read(block_bytes: int | None) -> Iterator[Recording]:
        for recording in found.read(block_bytes):
            chosen = recording.of_task(task) if task else recording
            if chosen is not None and name is not None:
                chosen.rename(name)
            if chosen is not None:
                yield chosen

    return _Source(name or task, identity, read)


def _open(
    source: Any, options: Mapping[str, Any], cache: str | os.PathLike[str] | None, progress: bool
) -> _Source:
    if isinstance(source, Mapping) or callable(getattr(source, "get_dataset", None)):
        return _arrays(source, options)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a source is a {type(source).__name__}: give a path, a name, or a mapping of arrays"
        )
    kind, name = _kind(source)
    if kind == "torchrl":
        return _torchrl(name, options)
    if kind == "minari":
        if "keys" in options:
            raise ConfigError(f"{name}: keys are for arrays and columns, and Minari's are fixed")
        chosen = {key: value for key, value in options.items() if key != "max_episode_steps"}
        return _Source(
            name,
            lambda: ["minari", name, *_stamp(minari_metadata_file(name))],
            lambda _: iter([read_minari(name, **chosen)]),
        )
    path = Path(name)
    if kind == "lerobot":
        path = path if is_lerobot(path) else fetch_lerobot(name)
        chosen = {key: value for key, value in options.items() if key != "max_episode_steps"}
        return _Source(
            name,
            lambda: ["lerobot", name, *_stamp(path / INFO)],
            lambda block_bytes: iter_lerobot(
                path, name=name, block_bytes=block_bytes, progress=progress, **chosen
            ),
        )
    limit, called = options["max_episode_steps"], None
    if kind == "d4rl":
        path, called = fetch_d4rl(name, cache, progress=progress), name
        limit = limit or _TIME_LIMITS.get(name.partition("-")[0])
    given = {**options, "max_episode_steps": limit}
    read = iter_npz_file if path.suffix == ".npz" else iter_d4rl_file
    return _Source(
        called or path.stem,
        lambda: [kind, called, limit, *_stamp(path)],
        lambda block_bytes: read(
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

    def read(_: int | None) -> Iterator[Recording]:
        arrays = source if isinstance(source, Mapping) else source.get_dataset()
        given = {**options, "max_episode_steps": limit}
        yield from iter_d4rl_arrays(arrays, name=name, source=name, attributes=attributes, **given)

    return _Source(name, lambda: _of_no_file(name), read)


def _torchrl(name: str, options: Mapping[str, Any]) -> _Source:
    """A dataset of TorchRL's registry, all of it at once."""

    def read(_: int | None) -> Iterator[Recording]:
        try:
            data = load_dataset(name)[:]
            arrays = {ours: data[theirs].numpy() for ours, theirs in _TORCHRL_KEYS.items()}
        except Exception as error:  # of any of its readers
            raise DataError(
                f"torchrl:{name}: cannot be loaded as vectors ({type(error).__name__}: "
                f"{first_line(error)})"
            ) from error
        yield from iter_d4rl_arrays(arrays, name=name, source=name, attributes={}, **options)

    return _Source(name, lambda: _of_no_file(name), read)


def _of_no_file(name: str) -> list[Any]:
    raise ConfigError(
        f"{name}: root is for sources that are files; arrays are in memory: leave it out"
    )


def _kind(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The kind of a source, ``file`` or one of the prefixes, and its path or name."""
    name = os.fspath(source)
    prefix, _, rest = name.partition(":")
    if prefix in _PREFIXES:
        return prefix, rest
    if is_lerobot(Path(name)):
        return "lerobot", name
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
