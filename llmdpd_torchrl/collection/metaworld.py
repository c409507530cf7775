"""Collect Meta-World data with scripted experts, in worker processes, resumable per task.

The data of a task depends on the settings and the task only, not on the other collected tasks, the
number of workers, or interruptions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from llmdpd_torchrl.data.manifest import MANIFEST_NAME, Manifest, TaskRecord, task_record
from llmdpd_torchrl.envs.metaworld import (
    EpisodeSteps,
    goal_seed,
    make_simulator,
    reset_simulator,
)
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.utils.files import folder_lock, make_writable_folder, write_atomic
from llmdpd_torchrl.utils.processes import run_jobs
from llmdpd_torchrl.utils.settings import (
    Count,
    Fraction,
    NonEmpty,
    NonNegative,
    Size,
    checked_dataclass,
)

_PACKAGES = ("metaworld", "mujoco", "gymnasium", "numpy")


@checked_dataclass(frozen=True)
class CollectionSettings:
    """All settings that the data of a task depends on.

    Args:
        episodes_per_task: number of episodes of each task.
        noise_levels: episode e is run with action noise ``noise_levels[e % len(noise_levels)]``.
        seed: of placements and noise.
        max_steps: length at which an episode is truncated (Meta-World's own limit is 500).
        steps_after_success: steps recorded after the first success of an episode.
        expert_gain: factor on the expert's movement; below 1 it is another, slower expert.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> CollectionSettings(episodes_per_task=2, noise_levels=[0, 0.1]).noise_levels
        (0.0, 0.1)
    """

    episodes_per_task: Size = 30
    noise_levels: NonEmpty[NonNegative] = (0.0, 0.1, 0.3, 0.5)
    seed: Count = 0
    max_steps: EpisodeSteps = 500
    steps_after_success: Count = 10
    expert_gain: Fraction = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON represents them, with lists instead of tuples."""
        settings = {**asdict(self), "noise_levels": list(self.noise_levels)}
        if self.expert_gain == 1:  # so that data from before this setting stay valid
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
    """Collect the missing ``tasks`` into ``folder`` and write its manifest.

    Existing task files with the same settings are reused, so that an interrupted collection
    resumes, and tasks can be added later. Complete data are only read: their folder may be
    read-only.

    Args:
        folder: of the dataset; created if it does not exist.
        tasks: Meta-World task names.
        settings: see :class:`CollectionSettings`.
        workers: number of processes; default: one per available core, at most one per task.
        progress: whether to display a progress bar that counts episodes.

    Returns:
        the manifest of all tasks in the folder.

    Raises:
        ConfigError: if a task is unknown or the folder cannot be written.
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
    if (folder / MANIFEST_NAME).exists():
        manifest = Manifest.read(folder)  # refuses to write into another kind of dataset
        is_complete = manifest.settings == settings.to_dict() and manifest.tasks.keys() >= set(
            names
        )
        if is_complete and not os.access(folder, os.W_OK):
            return manifest
    make_writable_folder(folder, "data", "data.folder")
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
    existing = {
        name: task_record(path, settings.to_dict()) for name, path in paths.items() if path.exists()
    }
    missing = [name for name in names if name not in existing]
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
        name: existing.get(name) or task_record(paths[name], settings.to_dict())
        for name in METAWORLD_TASKS.names
        if name in existing or name in missing
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


def collect_task(task: str, path: Path, settings: CollectionSettings) -> Iterator[int]:
    """Collect all episodes of one task and write its file atomically.

    Yields:
        the number of steps of each episode as it ends.
    """
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
        yield length
    simulator.close()
    arrays = {key: np.concatenate(values) for key, values in columns.items()}
    # One header entry, because safetensors does not fix the order of several, and equal data must
    # have equal bytes.
    header = json.dumps({"settings": settings.to_dict(), "episodes": episodes}, sort_keys=True)
    content = save(arrays, {"collection": header})  # save_file does not report a full disk

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def make_expert(task: str) -> Any:
    """The scripted policy of ``task``: ``get_action(observation [39]) -> action [4]``."""
    from metaworld.policies import ENV_POLICY_MAP

    policies: dict[str, Any] = ENV_POLICY_MAP
    return policies[task]()


def run_expert_episode(
    simulator: Any,
    expert: Any,
    *,
    seed: int,
    noise: float,
    max_steps: int,
    steps_after_success: int,
    gain: float = 1.0,
) -> dict[str, NDArray[Any]]:
    """Run one episode: action = clip(gain · clip(expert) + noise · N(0, 1)), clipped to [-1, 1].

    Args:
        simulator: from :func:`~llmdpd_torchrl.envs.make_simulator`.
        expert: from :func:`make_expert`.
        seed: of the placement of object and goal, and of the noise.
        noise: standard deviation of the action noise, in units of the action range's half width.
        max_steps: the episode is truncated here.
        steps_after_success: number of steps recorded after the first success before the episode is
            truncated: enough to record that the goal is held, without much waiting in the data.
        gain: factor on the movement, at most 1; the gripper's action is not scaled.

    Returns:
        arrays over the T steps of the episode: ``observation`` and ``next_observation`` [T, 39],
        ``action`` [T, 4], ``reward`` [T, 1] (float32), ``success``, ``terminated`` and
        ``truncated`` [T, 1] (bool). Meta-World never terminates: the last step is truncated.
    """
    generator = np.random.default_rng(seed)
    observations = np.empty((max_steps + 1, 39), dtype=np.float32)
    actions = np.empty((max_steps, 4), dtype=np.float32)
    rewards = np.empty((max_steps, 1), dtype=np.float32)
    successes = np.zeros((max_steps, 1), dtype=np.bool_)
    disturbance = generator.standard_normal((max_steps, 4)) * noise

    observation = reset_simulator(simulator, seed=seed)
    observations[0] = observation
    last = max_steps
    steps = 0
    with warnings.catch_warnings():
        # The experts warn that their actions exceed the range; they are clipped below.
        warnings.simplefilter("ignore", UserWarning)
        while steps < last:
            action = expert.get_action(observation)
            if gain != 1.0:
                action = np.append(gain * np.clip(action[:3], -1.0, 1.0), action[3])
            actions[steps] = np.clip(action + disturbance[steps], -1.0, 1.0)
            observation, reward, _, _, info = simulator.step(actions[steps])
            rewards[steps] = reward
            successes[steps] = bool(info["success"])
            if successes[steps] and last == max_steps:
                last = min(max_steps, steps + 1 + steps_after_success)
            steps += 1
            observations[steps] = observation
    truncated = np.zeros((steps, 1), dtype=np.bool_)
    truncated[-1] = True
    return {
        "observation": observations[:steps].copy(),
        "next_observation": observations[1 : steps + 1].copy(),
        "action": actions[:steps].copy(),
        "reward": rewards[:steps].copy(),
        "success": successes[:steps].copy(),
        "terminated": np.zeros((steps, 1), dtype=np.bool_),
        "truncated": truncated,
    }
