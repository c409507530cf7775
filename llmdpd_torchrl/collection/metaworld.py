"""Collect Meta-World data with scripted experts, in worker processes, resumable per task.

The data of a task depends on the settings and the task only, not on the other collected tasks, the
number of workers, or interruptions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from llmdpd_torchrl.collection.behaviour import BehavingExpert, Behaviour
from llmdpd_torchrl.data.manifest import MANIFEST_NAME, Manifest, task_record
from llmdpd_torchrl.envs.metaworld import EpisodeSteps, goal_seed, make_simulator, reset_simulator
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS, scene_of
from llmdpd_torchrl.utils.cache import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import import_optional, notice
from llmdpd_torchrl.utils.files import write_bytes
from llmdpd_torchrl.utils.processes import run_jobs
from llmdpd_torchrl.utils.settings import (
    Count,
    Fraction,
    Many,
    NonEmpty,
    NonNegative,
    Size,
    checked_dataclass,
)

_FORMAT = 2  # of the task files: since 2 they have expert_action
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
        behaviours: replace the two settings for noise and gain: what is done to the expert,
            episode by episode, again from the first after the last.
        retries: where no episode of a task succeeds, record up to so many more of the first
            behaviour, until one does, and then up to so many at each higher gain, in steps of 0.1.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> CollectionSettings(episodes_per_task=2, noise_levels=[0, 0.1]).noise_levels
        (0.0, 0.1)
        >>> mixed = [Behaviour(episodes=2), {"gain": 0.5}, {"hand_pushes": 0.03}]
        >>> settings = CollectionSettings(behaviours=mixed)
        >>> [settings.behaviour(episode).gain for episode in range(6)]
        [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    """

    episodes_per_task: Size = 30
    noise_levels: NonEmpty[NonNegative] = (0.0, 0.1, 0.3, 0.5)
    seed: Count = 0
    max_steps: EpisodeSteps = 500
    steps_after_success: Count = 10
    expert_gain: Fraction = 1.0
    behaviours: Many[Behaviour] = ()
    retries: Count = 0

    def behaviour(self, episode: int) -> Behaviour:
        """What is done to the expert in an episode of each task."""
        if not self.behaviours:
            noise = self.noise_levels[episode % len(self.noise_levels)]
            return Behaviour(noise=noise, gain=self.expert_gain)
        cycle = [behaviour for behaviour in self.behaviours for _ in range(behaviour.episodes)]
        return cycle[episode % len(cycle)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON represents them, with lists instead of tuples."""
        settings = {**asdict(self), "noise_levels": list(self.noise_levels)}
        settings["behaviours"] = [behaviour.to_dict() for behaviour in self.behaviours]
        # What is as by default is left out, so that data from before a setting stay valid.
        usual: dict[str, Any] = {"expert_gain": 1.0, "behaviours": [], "retries": 0}
        if self.behaviours:  # which replace them
            usual |= {key: settings[key] for key in ("noise_levels", "expert_gain")}
        return {key: value for key, value in settings.items() if value != usual.get(key)}

    @property
    def folder(self) -> Path:
        """The folder of these data in the user's cache; other settings have another."""
        identity = json.dumps({**self.to_dict(), "format": _FORMAT}, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        name = f"{self.episodes_per_task}-episodes-seed-{self.seed}-{digest[:10]}"
        return cache_root() / "data" / "metaworld" / name


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
    read-only. Of several processes, one collects and the others wait.

    Args:
        folder: of the dataset; created if it does not exist. The user's cache has one for every
            settings, :attr:`CollectionSettings.folder`.
        tasks: Meta-World task names.
        settings: see :class:`CollectionSettings`.
        workers: number of processes; default: one per available core, at most one per task.
        progress: whether to display a progress bar that counts episodes.

    Returns:
        the manifest of all tasks in the folder.

    Raises:
        ConfigError: if a task is unknown, the folder cannot be written, or Meta-World, which only
            missing tasks need, is not installed.
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
        if _is_complete(manifest, folder, names, settings):
            _tell_other_versions(manifest, folder)
            return manifest
    with locked_folder(folder, "data", "data.folder"):
        for path in folder.glob(".*.tmp*"):  # left by a killed process, never by a finished one
            path.unlink(missing_ok=True)
        paths = {name: folder / f"{name}.safetensors" for name in METAWORLD_TASKS.names}
        there = {name: path for name, path in paths.items() if path.exists()}
        records = {name: task_record(path, settings.to_dict()) for name, path in there.items()}
        missing = [name for name in names if name not in records]
        if missing:
            import_optional("metaworld", f"collecting {', '.join(missing)}", "metaworld")
            run_jobs(
                collect_task,
                [(name, paths[name], settings) for name in missing],
                workers=workers,
                episodes=len(missing) * settings.episodes_per_task,
                description="collect",
                progress=progress,
            )
        # Read back what was written: the manifest describes files, not intentions.
        records |= {name: task_record(paths[name], settings.to_dict()) for name in missing}
        manifest = Manifest(
            environment="metaworld",
            settings=settings.to_dict(),
            packages=_versions(),
            task_table=list(METAWORLD_TASKS.names),
            observation_layout=METAWORLD_OBSERVATION_LAYOUT,
            action_size=4,
            tasks={name: records[name] for name in METAWORLD_TASKS.names if name in records},
        )
        manifest.write(folder)
        return manifest


def _is_complete(
    manifest: Manifest, folder: Path, names: Sequence[str], settings: CollectionSettings
) -> bool:
    """Whether nothing has to be collected or described again; the files are checked when loaded."""
    is_as_written = (
        manifest.settings == settings.to_dict()
        and manifest.task_table == list(METAWORLD_TASKS.names)
        and manifest.observation_layout == METAWORLD_OBSERVATION_LAYOUT
    )
    files = [manifest.tasks[name].file for name in names if name in manifest.tasks]
    return is_as_written and len(files) == len(names) and all((folder / f).is_file() for f in files)


def _tell_other_versions(manifest: Manifest, folder: Path) -> None:
    """Say so where another simulator made the data than the one that is installed."""
    installed = _versions()
    other = [
        f"{name} {manifest.packages[name]} (here it is {installed[name]})"
        for name in ("metaworld", "mujoco")
        if name in installed and manifest.packages.get(name, installed[name]) != installed[name]
    ]
    if other:
        notice(f"the data in {folder} were collected with {' and '.join(other)}")


def _versions() -> dict[str, str]:
    """Of the packages that the data depend on; to describe files, no simulator is needed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def collect_task(task: str, path: Path, settings: CollectionSettings) -> Iterator[int]:
    """Collect all episodes of one task and write its file atomically.

    Yields:
        the number of steps of each episode as it ends.
    """
    from metaworld.policies import ENV_POLICY_MAP

    policies: dict[str, Any] = ENV_POLICY_MAP
    simulator = make_simulator(task)
    episodes: list[dict[str, Any]] = []
    columns: list[dict[str, NDArray[Any]]] = []
    for index, (behaviour, expert) in enumerate(_with_experts(task, _plan(settings, episodes))):
        seed = goal_seed(settings.seed, task, index, "collection")
        episode = _expert_episode(simulator, policies[expert](), settings, seed, behaviour)
        length = len(episode["action"])
        rows = np.ones((length, 1), dtype=np.int64)
        episode["task_id"] = rows * METAWORLD_TASKS.index(task)
        episode["episode"] = rows * index
        episode["step_count"] = np.arange(length, dtype=np.int64)[:, None]
        columns.append(episode)
        about = behaviour.to_dict()
        about.pop("episodes", None)
        if behaviour.expert != "own":
            about["expert"] = expert
        episodes.append(
            {
                "seed": seed,
                "noise": behaviour.noise,
                "gain": behaviour.gain,
                **about,
                "length": length,
                "return": round(float(episode["reward"].sum(dtype=np.float64)), 4),
                "success": bool(episode["success"].any()),
            }
        )
        yield length
    simulator.close()
    arrays = {key: np.concatenate([episode[key] for episode in columns]) for key in columns[0]}
    # One header entry, because safetensors does not fix the order of several, and equal data must
    # have equal bytes.
    header = json.dumps({"settings": settings.to_dict(), "episodes": episodes}, sort_keys=True)
    write_bytes(path, save(arrays, {"collection": header}))  # save_file misses a full disk


def _plan(settings: CollectionSettings, episodes: list[dict[str, Any]]) -> Iterator[Behaviour]:
    """The behaviours of a task's episodes, of which more follow while none in the list succeeds."""
    yield from map(settings.behaviour, range(settings.episodes_per_task))
    first = settings.behaviour(0)
    for tenths in range(math.ceil(10 * (1 - first.gain) - 1e-9) + 1):
        for _ in range(settings.retries):
            if any(episode["success"] for episode in episodes):
                return
            yield dataclasses.replace(first, gain=min(1.0, round(first.gain + tenths / 10, 4)))


def _with_experts(task: str, plan: Iterable[Behaviour]) -> Iterator[tuple[Behaviour, str]]:
    """The behaviours, and the tasks whose experts are under them."""
    others: Iterator[str] | None = None
    for behaviour in plan:
        if behaviour.expert == "own":
            yield behaviour, task
            continue
        others = itertools.cycle(scene_of(task)) if others is None else others
        yield behaviour, next(others)


def _expert_episode(
    simulator: Any, expert: Any, settings: CollectionSettings, seed: int, behaviour: Behaviour
) -> dict[str, NDArray[Any]]:
    """One episode. Meta-World never terminates: the last step is truncated.

    Returns:
        arrays over the T steps of the episode: ``observation`` and ``next_observation`` [T, 39],
        ``action`` and, undisturbed, ``expert_action`` [T, 4], ``reward`` [T, 1] (float32),
        ``success``, ``terminated`` and ``truncated`` [T, 1] (bool).
    """
    # Data of noise_levels alone stay as they were: noise is added to the expert's unclipped action.
    clip = bool(settings.behaviours)
    actor = BehavingExpert(expert, behaviour, seed=seed, max_steps=settings.max_steps, clip=clip)
    observation = reset_simulator(simulator, seed=seed)
    rows: list[tuple[Any, ...]] = []
    last = settings.max_steps
    with warnings.catch_warnings():
        # The experts warn that their actions exceed the range; they are clipped.
        warnings.simplefilter("ignore", UserWarning)
        while len(rows) < last:
            before = observation.astype(np.float32)
            wanted, action = actor.act(observation)
            actor.push_object(simulator)
            observation, reward, _, _, info = simulator.step(action)
            success = bool(info["success"])
            after = observation.astype(np.float32)
            rows.append((before, after, action, wanted, [reward], [success]))
            if success and last == settings.max_steps:
                last = min(last, len(rows) + settings.steps_after_success)
    observations, successors, actions, labels, rewards, successes = zip(*rows, strict=True)
    return {
        "observation": np.array(observations),
        "next_observation": np.array(successors),
        "action": np.array(actions),
        "expert_action": np.array(labels),
        "reward": np.array(rewards, dtype=np.float32),
        "success": np.array(successes),
        "terminated": np.zeros((len(rows), 1), dtype=np.bool_),
        "truncated": np.arange(len(rows))[:, None] == len(rows) - 1,
    }
