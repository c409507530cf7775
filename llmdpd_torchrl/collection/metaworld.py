"""Collect Meta-World data with scripted experts, in worker processes, resumable per task.

The data of a task is a function of the settings and the task alone: which other tasks are
collected, with how many workers, and how often the run was interrupted, change nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from llmdpd_torchrl.collection.experts import make_expert, run_expert_episode
from llmdpd_torchrl.data.manifest import MANIFEST_NAME, Manifest, TaskRecord, task_record
from llmdpd_torchrl.envs.simulator import goal_seed, make_simulator
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import folder_lock, make_writable_folder, write_atomic
from llmdpd_torchrl.utils.processes import count_episode, run_jobs

__all__ = ["CollectionSettings", "collect_metaworld", "collect_task"]

_PACKAGES = ("metaworld", "mujoco", "gymnasium", "numpy")


@dataclass(frozen=True)
class CollectionSettings:
    """Everything that the data of a task is a function of.

    Args:
        episodes_per_task: N.
        noise_levels: episode e is run with action noise ``noise_levels[e % len(noise_levels)]``.
        seed: of placements and noise.
        max_steps: length at which an episode is truncated (Meta-World's own limit is 500).
        steps_after_success: steps kept after the first success of an episode.
        expert_gain: how much of its movement the expert makes: below 1 it is another, slower one.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> CollectionSettings(episodes_per_task=2, noise_levels=[0, 0.1]).noise_levels
        (0.0, 0.1)
    """

    episodes_per_task: int = 30
    noise_levels: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    seed: int = 0
    max_steps: int = 500
    steps_after_success: int = 10
    expert_gain: float = 1.0

    def __post_init__(self) -> None:
        try:
            levels = tuple(float(level) for level in self.noise_levels)
        except (TypeError, ValueError):
            raise ConfigError(
                f"noise_levels is {self.noise_levels!r}: give a list of numbers >= 0"
            ) from None
        object.__setattr__(self, "noise_levels", levels)
        if self.episodes_per_task < 1:
            raise ConfigError(
                f"episodes_per_task is {self.episodes_per_task}: it must be at least 1"
            )
        if not self.noise_levels or min(self.noise_levels) < 0:
            raise ConfigError(f"noise_levels is {list(self.noise_levels)}: give numbers >= 0")
        if not 1 <= self.max_steps <= 500:
            raise ConfigError(f"max_steps is {self.max_steps}: Meta-World allows 1 to 500")
        if self.steps_after_success < 0:
            raise ConfigError(f"steps_after_success is {self.steps_after_success}: must be >= 0")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: must be >= 0")
        if not 0 < self.expert_gain <= 1:
            raise ConfigError(f"expert_gain is {self.expert_gain}: above 0 and at most 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back: lists for tuples."""
        settings = {**asdict(self), "noise_levels": list(self.noise_levels)}
        if self.expert_gain == 1:  # the expert as it is: what data were always made by
            del settings["expert_gain"]
        return settings


def collect_metaworld(
    folder: str | Path,
    tasks: Sequence[str],
    settings: CollectionSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Collect what is missing of ``tasks`` into ``folder`` and write its manifest.

    Task files that are already there with the same settings are kept, so that an interrupted
    collection goes on where it was, and a collection can be widened by tasks later.

    Args:
        folder: of the dataset; made if it does not exist.
        tasks: Meta-World task names.
        settings: see :class:`CollectionSettings`.
        workers: number of processes; default: one per available core, at most one per task.
        progress: whether to show a bar that counts episodes.

    Returns:
        the manifest of the whole dataset.

    Raises:
        ConfigError: if a task is unknown or the folder can not be written.
        DataError: if the folder holds data of other settings, or a damaged file.

    Examples:
        >>> import tempfile
        >>> settings = CollectionSettings(episodes_per_task=1, max_steps=5)
        >>> manifest = collect_metaworld(
        ...     tempfile.mkdtemp(), ["reach-v3"], settings, workers=1, progress=False
        ... )
        >>> manifest.tasks["reach-v3"].transitions
        5
    """
    folder = Path(folder)
    settings = settings or CollectionSettings()
    names = METAWORLD_TASKS.check(tasks)
    make_writable_folder(folder, "data", "data.folder")
    if (folder / MANIFEST_NAME).exists():
        Manifest.read(folder)  # refuse to write into something that is not a dataset of ours
    with folder_lock(folder):
        return _collect_locked(folder, names, settings, workers, progress)


def _collect_locked(
    folder: Path,
    names: Sequence[str],
    settings: CollectionSettings,
    workers: int | None,
    progress: bool,
) -> Manifest:
    for path in folder.glob(".*.tmp*"):  # left by a killed process, never by a finished one
        path.unlink(missing_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in METAWORLD_TASKS.names}
    kept = {
        name: task_record(path, settings.to_dict()) for name, path in paths.items() if path.exists()
    }
    missing = [name for name in names if name not in kept]
    if missing:
        run_jobs(
            collect_task,
            [(name, paths[name], settings) for name in missing],
            workers=workers,
            episodes=len(missing) * settings.episodes_per_task,
            description="collect",
            progress=progress,
        )
    # Read back what was written: the manifest describes files, not intentions.
    records: dict[str, TaskRecord] = {
        name: kept.get(name) or task_record(paths[name], settings.to_dict())
        for name in METAWORLD_TASKS.names
        if name in kept or name in missing
    }
    manifest = Manifest(
        environment="metaworld",
        settings=settings.to_dict(),
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
        task_table=list(METAWORLD_TASKS.names),
        observation_layout=METAWORLD_OBSERVATION_LAYOUT,
        action_size=4,
        tasks=records,
    )
    manifest.write(folder)
    return manifest


def collect_task(task: str, path: Path, settings: CollectionSettings) -> None:
    """Collect all episodes of one task and write its file, whole or not at all."""
    simulator = make_simulator(task)
    expert = make_expert(task)
    episodes: list[dict[str, Any]] = []
    columns: dict[str, list[np.ndarray]] = {}
    for index in range(settings.episodes_per_task):
        seed = goal_seed(settings.seed, task, index, "collection")
        noise = settings.noise_levels[index % len(settings.noise_levels)]
        episode = run_expert_episode(
            simulator,
            expert,
            seed=seed,
            noise=noise,
            max_steps=settings.max_steps,
            steps_after_success=settings.steps_after_success,
            gain=settings.expert_gain,
        )
        length = len(episode["action"])
        rows = np.ones((length, 1), dtype=np.int64)
        episode["task_id"] = rows * METAWORLD_TASKS.index(task)
        episode["episode"] = rows * index
        episode["step_count"] = np.arange(length, dtype=np.int64)[:, None]
        for key, value in episode.items():
            columns.setdefault(key, []).append(value)
        episodes.append(
            {
                "seed": seed,
                "noise": noise,
                "length": length,
                "return": round(float(episode["reward"].sum(dtype=np.float64)), 4),
                "success": bool(episode["success"].any()),
            }
        )
        count_episode(length)
    simulator.close()
    arrays = {key: np.concatenate(values) for key, values in columns.items()}
    # One header entry: safetensors does not fix the order of several, and equal data must have
    # equal bytes.
    header = json.dumps({"settings": settings.to_dict(), "episodes": episodes}, sort_keys=True)
    content = save(arrays, {"collection": header})  # save_file would not say so of a full disk

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)
