"""One reader for everything: files in D4RL's layout, D4RL's and Minari's names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmdpd_torchrl.data.d4rl import read_d4rl_file
from llmdpd_torchrl.data.fetch import fetch_d4rl
from llmdpd_torchrl.data.minari import read_minari
from llmdpd_torchrl.data.offline import OfflineDataset
from llmdpd_torchrl.data.recording import Recording

__all__ = ["load_episodes"]

_SUFFIXES = (".hdf5", ".h5")
#: Time limits of the environments behind D4RL's first files, which do not mark time-outs.
_TIME_LIMITS = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "ant"), 1000)


def load_episodes(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    max_episode_steps: int | None = None,
    task_key: str | None = None,
    infos: Sequence[str] = (),
    action_range: tuple[float, float] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> OfflineDataset:
    """Load recorded episodes of one or several sources, each a task of its own.

    A source is the path of an HDF5 file in D4RL's layout (``data/hopper_medium.hdf5``), a name of
    D4RL's (``hopper-medium-v2``, downloaded once), or an id of Minari's
    (``mujoco/hopper/medium-v0``, taken from this machine or downloaded by Minari). What has a slash
    and is no file is an id of Minari's; the prefixes ``d4rl:`` and ``minari:`` leave no doubt.

    Args:
        sources: one, or several of one kind of environment.
        max_episode_steps: see :func:`~llmdpd_torchrl.data.d4rl.read_d4rl_file`.
        task_key: the column of the source's infos that tells its tasks apart.
        infos: further columns to keep, under ``"info"``.
        action_range: what actions lie in; it is mapped to [-1, 1]. Default: [-1, 1], or the
            bounds of a Minari dataset's action space.
        cache: folder of D4RL's files; default: ``data_cache/d4rl``.
        progress: whether downloads show a bar.

    Raises:
        ConfigError: if a name is unknown or a package is missing.
        DataError: if a source is missing, damaged or does not fit the others.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]

    def read(source: str | os.PathLike[str]) -> Recording:
        kind, name = _kind(source)
        if kind == "minari":
            return read_minari(name, task_key=task_key, infos=infos, action_range=action_range)
        path, limit = Path(name), max_episode_steps
        if kind == "d4rl":
            path = fetch_d4rl(name, cache, progress=progress)
            limit = limit or _TIME_LIMITS.get(name.partition("-")[0])
        return read_d4rl_file(
            path,
            name=name if kind == "d4rl" else None,
            max_episode_steps=limit,
            task_key=task_key,
            infos=infos,
            action_range=action_range or (-1.0, 1.0),
        )

    return OfflineDataset.from_recordings([read(source) for source in sources])


def _kind(source: str | os.PathLike[str]) -> tuple[str, str]:
    """What a source is (``file``, ``d4rl`` or ``minari``), and its path or name."""
    name = os.fspath(source)
    prefix, _, rest = name.partition(":")
    if prefix in ("d4rl", "minari"):
        return prefix, rest
    if isinstance(source, Path) or name.endswith(_SUFFIXES) or Path(name).exists():
        return "file", name
    return ("minari" if "/" in name else "d4rl"), name
