"""The work of a comparison: a policy is trained, if it is not yet, and plays what is missing.

It can be stopped at any time. A training goes on from its last checkpoint; of the episodes, those
of a few tasks are kept at a time. Two processes can share the work: each policy has a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from benchmarks.common import machine
from benchmarks.studies.episodes import read_episodes, write_episodes
from benchmarks.studies.playing import play, read_settings
from benchmarks.studies.registry import Arm, Experiment, Variant
from benchmarks.studies.store import Store
from llmdpd_torchrl.baselines import retrieve_and_play_policy
from llmdpd_torchrl.evaluation.results import git_revision
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.experiments.context import Run
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import prepare, run_stage
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.utils.backends import Backend, make_backend
from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.files import write_json

#: Tasks whose episodes are played, and kept, at a time.
TASKS_AT_A_TIME = 23
#: Measured with one thread of a shared core; where nothing of the variant is kept yet.
SECONDS_AN_UPDATE, SECONDS_AN_EPISODE = 0.025, 0.2


@dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
        store: the kept files.
        data: the folder of the data.
        output: the folder of the trainings.
        workers: processes of evaluations; ``None``: one a core.
    """

    store: Store
    data: Path
    output: Path
    workers: int | None = None


@dataclass(frozen=True)
class Job:
    """One policy of an experiment: a variant with a seed."""

    experiment: Experiment
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and of its kept files."""
        return f"{self.variant.name}-seed{self.seed}"

    def missing(self, store: Store) -> list[Arm]:
        """The arms that are still to be played."""
        return store.missing(self.experiment, self.variant, self.seed)

    def settings(self, place: Place) -> list[str]:
        """All that differs from the defaults of ``configs/train_metaworld.yaml``."""
        return [
            _with_folder("data.folder={data}", place.data),
            *(_with_folder(setting, place.data) for setting in self.variant.settings),
            f"name={self.name}",
            _with_folder("output_dir={data}", place.output / self.name),
            f"seed={self.seed}",
            f"evaluation.workers={place.workers or 'null'}",
        ]

    def command(self) -> str:
        """What makes this policy and plays its arms."""
        return (
            f"python -m benchmarks.studies experiment={self.experiment.name} "
            f"variants=[{self.variant.name}] seeds=[{self.seed}]"
        )


def _with_folder(setting: str, folder: Path) -> str:
    """A setting with a folder in the place of ``{data}``, quoted for what its name may hold."""
    key, _, value = setting.partition("=")
    return f"{key}='{value.replace('{data}', str(folder))}'" if "{data}" in value else setting


def jobs(experiment: Experiment, variants: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The policies of an experiment, the first seed of each before the second of any.

    Args:
        experiment: of this benchmark.
        variants: names; none: all that need nothing special.
        seeds: none: the experiment's.

    Raises:
        ConfigError: if there is no such variant.
    """
    known = {variant.name: variant for variant in experiment.variants}
    unknown = [name for name in variants if name not in known]
    if unknown:
        raise ConfigError(
            f"experiment {experiment.name} has no variant {unknown[0]!r}: use some of "
            f"{', '.join(known)}"
        )
    chosen = [known[n] for n in variants] or [v for v in known.values() if not v.needs]
    found = []
    for place, seed in enumerate(seeds or experiment.seeds):
        for variant in chosen:
            if variant.policy == "trained" or place == 0:
                number = seed if variant.policy == "trained" else experiment.seeds[0]
                found.append(Job(experiment, variant, number))
    return found


def check(wanted: Sequence[Job], place: Place) -> None:
    """Refuse, before hours of work, what will not run.

    Raises:
        ConfigError: on a setting that does not exist or is wrong, and if what is kept is of others.
    """
    for job in wanted:
        _check_kept(job, place)
    for job in {job.variant.name: job for job in wanted}.values():  # seeds differ in nothing else
        _check_settings(job, place)


def _check_kept(job: Job, place: Place) -> None:
    kept = place.store.training(job.experiment, job.variant, job.seed)
    if kept and kept["settings"] != list(job.variant.settings):
        path = place.store.training_path(job.experiment, job.variant, job.seed)
        raise ConfigError(
            f"{path}: what is kept was made with other settings, {' '.join(kept['settings'])}; "
            f"delete {job.name}-* there, or call the variant otherwise"
        )


def _check_settings(job: Job, place: Place) -> None:
    try:
        cfg = read_settings("configs", "train_metaworld", job.settings(place))
        with tempfile.TemporaryDirectory() as folder:
            for arm in job.variant.arms:
                shown = _shown(cfg, job.experiment, arm)
                shown.output_dir = folder
                prepare(shown, MetaWorld())
    except UserError as error:
        raise ConfigError(f"{job.experiment.name}, variant {job.variant.name!r}: {error}") from None


def run(job: Job, place: Place) -> None:
    """Train the policy and play its arms, as far as that is not done.

    Raises:
        UserError: if that fails, or what is kept is of another training.
    """
    folder = place.output / job.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            missing = job.missing(place.store)
            if not missing:
                print(f"{job.name}: kept")
                return
            print(f"{job.name}: {', '.join(f'{a.name}-{a.group}' for a in missing)}", flush=True)
            trained = _train(job, place)
            options = trained.cfg.evaluation
            with contextlib.closing(make_backend(options.backend, options.workers)) as backend:
                for arm in missing:
                    _play(job, place, trained, arm, backend)
    except Timeout:
        print(f"{job.name}: another process is at it")


def seconds_left(job: Job, place: Place) -> float:
    """About how long :func:`run` will take, by what is kept of the like."""
    missing = job.missing(place.store)
    if not missing:
        return 0.0
    kept = [*_kept(place.store, f"{job.variant.name}-seed*"), *_kept(place.store, "*")]
    seconds = 0.0
    is_there = (place.output / job.name / "checkpoint" / "policy.json").exists()
    if job.variant.policy == "trained" and not is_there:
        updates = next(
            (int(s.partition("=")[2]) for s in reversed(job.variant.settings)
             if s.startswith("trainer.total_updates=")), 20_000,
        )  # fmt: skip
        rates = [k["train_seconds"] / k["updates"] for k in kept if k.get("train_seconds")]
        seconds += updates * (rates[0] if rates else SECONDS_AN_UPDATE)
    rates = [
        played["seconds"] / played["episodes"]
        for about in kept
        for played in about["evaluation"].values()
    ]
    rate = statistics.mean(rates) if rates else SECONDS_AN_EPISODE
    tasks = {"unseen": 5, "seen": 45}
    episodes = sum(tasks[arm.group] * job.experiment.episodes_of(arm) for arm in missing)
    return seconds + rate * episodes


def _kept(store: Store, pattern: str) -> Iterator[dict]:
    for path in sorted((store.root / "runs").glob(f"{pattern}-training.json")):
        yield json.loads(path.read_text())


def _train(job: Job, place: Place) -> Run:
    """The run with its policy, and what there is to say about it beside the episodes."""
    cfg = read_settings("configs", "train_metaworld", job.settings(place))
    found = prepare(cfg, MetaWorld())
    for stage in ("collect", "embed"):
        run_stage(found, stage)
    if job.variant.policy == "retrieve_and_play":
        length = cfg.trajectory_prompt.length
        found.policy = retrieve_and_play_policy(
            NetworkConfig(prompt="trajectory", trajectory_length=length)
        )
        seconds: float | None = 0.0
    else:
        seconds = _timed_training(found)
    path = place.store.training_path(job.experiment, job.variant, job.seed)
    kept = place.store.training(job.experiment, job.variant, job.seed)
    if kept and kept["fingerprint"] != found.fingerprint:
        raise ConfigError(
            f"{path}: what is kept is of another training (its data or defaults were others); "
            f"delete {job.name}-* there to begin anew"
        )
    if not kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "command": job.command(),
                "settings": list(job.variant.settings),
                "seed": job.seed,
                "updates": found.policy.info.get("updates", 0),
                "train_seconds": seconds,
                "parameters": _parameters(found),
                "fingerprint": found.fingerprint,
                "data_hash": found.dataset.manifest.data_hash,
                "git_revision": git_revision(),
                "machine": machine(),
                "seen_tasks": list(found.split.train),
                "unseen_tasks": list(found.split.held_out),
                "evaluation": {},
            },
        )
    return found


def _timed_training(found: Run) -> float | None:
    """Train; returns the seconds, interruptions left out; ``None`` if they are not known.

    A training that is told to stop notes its time; one that is killed can not.
    """
    note = found.output / "spent.json"
    spent: float | None = 0.0
    if note.exists():
        spent = json.loads(note.read_text())["seconds"]
    elif (found.output / "training").exists():
        spent = None
    note.unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        run_stage(found, "train")
    except BaseException:
        if spent is not None and (found.output / "training").exists():
            write_json(note, {"seconds": spent + time.monotonic() - begun})
        raise
    if not found.trained:  # the example has done it
        times = found.output / "timings.json"
        return json.loads(times.read_text())["stage_seconds"]["train"] if times.exists() else None
    return None if spent is None else round(spent + found.seconds["train"], 1)


def _parameters(found: Run) -> int:
    """Of all that acts; frozen embeddings are no part of it."""
    policy = found.policy
    modules = [module for module in (policy.actor, policy.encoder) if module is not None]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _shown(cfg: DictConfig, experiment: Experiment, arm: Arm) -> DictConfig:
    """The configuration under which an arm is played."""
    changed = cfg.copy()
    changed.evaluation.episodes_per_task = experiment.episodes_of(arm)
    for override in arm.overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(changed, key, yaml.safe_load(value))
    return changed


def _play(job: Job, place: Place, trained: Run, arm: Arm, backend: Backend) -> None:
    """Play an arm, some tasks at a time; those whose episodes are all there are not played."""
    path = place.store.path(job.experiment, job.variant, job.seed, arm)
    playing = dataclasses.replace(trained, cfg=_shown(trained.cfg, job.experiment, arm))
    if any(override.startswith("data.support") for override in arm.overrides):
        playing.family.demonstrate(playing)  # type: ignore[attr-defined]
    tasks = trained.split.held_out if arm.group == "unseen" else trained.split.train
    kept = read_episodes(path) if path.exists() else []
    rows: list[EpisodeResult] = []
    goals = job.experiment.episodes_of(arm)
    for start in range(0, len(tasks), TASKS_AT_A_TIME):
        some = tasks[start : start + TASKS_AT_A_TIME]
        there = [episode for episode in kept if episode.task in some]
        wanted = {(task, goal) for task in some for goal in range(goals)}
        if not wanted <= {(episode.task, episode.goal_index) for episode in there}:
            begun = time.monotonic()
            there = play(playing, some, tasks, f"{job.name}, {arm.name}", backend)
            _note_time(job, place, arm, time.monotonic() - begun, len(there))
            write_episodes(path, [*rows, *there])
        rows += there


def _note_time(job: Job, place: Place, arm: Arm, seconds: float, episodes: int) -> None:
    about = place.store.training(job.experiment, job.variant, job.seed)
    played = about["evaluation"].setdefault(
        f"{arm.name}-{arm.group}", {"seconds": 0.0, "episodes": 0}
    )
    played["seconds"] = round(played["seconds"] + seconds, 1)
    played["episodes"] += episodes
    write_json(place.store.training_path(job.experiment, job.variant, job.seed), about)
