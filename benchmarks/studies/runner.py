"""The runner of studies: it trains a policy, if it is not yet, and evaluates its missing arms.

It can be stopped at any time. A training resumes from its last checkpoint; episodes are stored a
few tasks at a time. Two processes can share the work: each policy has a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from benchmarks.common import machine
from benchmarks.studies.jobs import FAMILIES, Job, Place
from benchmarks.studies.registry import Arm, Study
from benchmarks.studies.store import read_episodes, write_episodes
from llmdpd_torchrl.baselines import retrieve_and_play_plus_policy, retrieve_and_play_policy
from llmdpd_torchrl.evaluation.results import git_revision
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.experiments.config import Run
from llmdpd_torchrl.experiments.evaluate import evaluated_policy, evaluation_prompts, make_evaluator
from llmdpd_torchrl.experiments.run import fingerprint, prepare, run_stage
from llmdpd_torchrl.experiments.train import value_bounds
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import ConfigError, DataError, UserError
from llmdpd_torchrl.utils.files import write_json
from llmdpd_torchrl.utils.processes import Backend, make_backend

#: Settings of a stored training that do not distinguish it from another.
_INCIDENTAL = ("name=", "seed=", "until=", "tasks.split=ml45 ")
#: What makes the policies that are not trained, of their configuration.
UNTRAINED = {
    "retrieve_and_play": retrieve_and_play_policy,
    "retrieve_and_play_plus": retrieve_and_play_plus_policy,
}
#: What stored trainings call what is a choice of a group now.
_RENAMED = {
    "network.conditioning=pooled trajectory_prompt.length=32 trajectory_prompt.per_task=2": (
        "conditioning=pooled"
    ),
    "tasks.split=ml45_validation": "task_suite=ml45_validation",
}
#: Places of a training's curve that are stored.
MOST_ON_A_CURVE = 25
#: Tasks whose episodes are evaluated, and stored, at a time.
TASKS_AT_A_TIME = 23


def check(wanted: Sequence[Job], place: Place) -> None:
    """Refuse, before hours of work, what will not run.

    Raises:
        ConfigError: on a setting that does not exist or is wrong, and if what is stored was made
            with other settings.
    """
    for job in wanted:
        stored = place.store.training(job.study, job.variant, job.seed)
        settings = distinct_settings(stored)
        if settings and settings != " ".join(job.variant.settings):
            path = place.store.training_path(job.study, job.variant, job.seed)
            raise ConfigError(
                f"{path}: what is stored was made with other settings, {settings}; "
                f"delete {job.name}-* there, or rename the variant"
            )
    for job in {job.variant.base: job for job in wanted}.values():  # the others are alike
        if job.variant.policy not in ("trained", *UNTRAINED):
            raise ConfigError(f"{job.name}: there is no policy {job.variant.policy!r} yet")
        try:
            cfg = job.read(place)
            with tempfile.TemporaryDirectory() as folder:
                for arm in job.variant.arms:
                    changed = _under(cfg, job.study, arm)
                    changed.output_dir = folder
                    prepare(changed, FAMILIES[job.study.family][1]())
        except UserError as error:
            raise ConfigError(f"{job.study.name}, variant {job.variant.name!r}: {error}") from None


def distinct_settings(stored: Mapping[str, Any]) -> str:
    """What distinguishes a stored training, as today's definitions have it; empty: not known."""
    given = (s for s in stored.get("settings", ()) if not f"{s} ".startswith(_INCIDENTAL))
    settings = " ".join(given)
    for old, new in _RENAMED.items():
        settings = settings.replace(old, new)
    return settings


def adopt_renames(studies: Mapping[str, Study], place: Place, *, write: bool) -> list[str]:
    """Stored trainings whose fingerprint is not that of their settings and data any more.

    A setting that was renamed, or taken out with its default, changes all fingerprints and no
    training.

    Args:
        studies: all of them.
        place: the stored files.
        write: whether to store the new fingerprints; only after nothing but names has changed.

    Returns:
        the files.
    """
    found = {}
    for study in studies.values():
        for variant in study.variants:
            for seed in study.seeds_of(variant):
                stored = place.store.training(study, variant, seed)
                path = place.store.training_path(study, variant, seed)
                if "settings" not in stored or "data_hash" not in stored or path in found:
                    continue
                family = FAMILIES[study.family][1]()
                cfg = Job(study, variant, seed).read(place)
                now = fingerprint(cfg, family, stored["data_hash"])
                found[path] = now != stored["fingerprint"]
                if write and found[path]:
                    write_json(path, {**stored, "fingerprint": now})
    return [str(path) for path, differs in found.items() if differs]


def run(job: Job, place: Place) -> None:
    """Train the policy and evaluate its arms, as far as that is not done.

    Raises:
        UserError: if that fails, or what is stored is of another training.
    """
    folder = job.folder(place)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            missing = job.missing(place.store)
            if not missing:
                print(f"{job.name}: stored")
                return
            print(f"{job.name}: {', '.join(f'{a.name}-{a.group}' for a in missing)}", flush=True)
            trained = train(job, place)
            options = trained.cfg.evaluation
            with contextlib.closing(make_backend(options.backend, options.workers)) as backend:
                for arm in missing:
                    _evaluate(job, place, trained, arm, backend)
    except Timeout:
        print(f"{job.name}: another process is working on it")


def train(job: Job, place: Place) -> Run:
    """The run with its policy; what is known of the training is stored beside the episodes.

    Raises:
        UserError: if that fails, or what is stored is of another training.
    """
    cfg = job.read(place)
    found = prepare(cfg, FAMILIES[job.study.family][1]())
    for stage in ("collect", "embed"):
        run_stage(found, stage)
    path = place.store.training_path(job.study, job.variant, job.seed)
    stored = place.store.training(job.study, job.variant, job.seed)
    if stored and stored["fingerprint"] != found.fingerprint:
        raise ConfigError(
            f"{path}: what is stored is of another training (its data or defaults were others); "
            f"delete {job.name}-* there to start from scratch"
        )
    seconds: float | None = 0.0
    if job.variant.policy != "trained":
        found.policy = UNTRAINED[job.variant.policy](
            NetworkConfig(
                prompt="trajectory",
                trajectory_length=cfg.trajectory_prompt.length,
                trajectory_dropout=cfg.network.trajectory_dropout,  # above 0: can stand still
            )
        )
    else:
        seconds = _timed_training(found)
    if not stored:
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
                **_values(found),
                "evaluation": {},
            },
        )
    return found


def _timed_training(found: Run) -> float | None:
    """Train; returns the seconds without interruptions, ``None`` if they are not known.

    A training that is stopped notes its time; one that is killed cannot.
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
    if not found.trained:  # an earlier command has done it
        times = found.output / "timings.json"
        return json.loads(times.read_text())["stage_seconds"]["train"] if times.exists() else None
    return None if spent is None else round(spent + found.seconds["train"], 1)


def _values(found: Run) -> dict[str, Any]:
    """The critics' values in the training and what the rewards allow, if it has critics."""
    path = found.output / "metrics.csv"
    if not path.exists():
        return {}
    steps, metrics = read_metrics(path)
    values = metrics.get("train/q_value")
    if values is None:
        return {}
    some = slice(None, None, max(1, len(steps) // MOST_ON_A_CURVE))
    return {
        "value_bounds": list(value_bounds(found)),
        "largest_value": float(np.abs(values).max()),
        "curve": {"updates": steps[some].tolist(), "q_value": values[some].round(3).tolist()},
    }


def _parameters(found: Run) -> int:
    """The number of parameters of what acts; frozen embeddings are no part of it."""
    policy = found.policy
    modules = [module for module in (policy.actor, policy.encoder) if module is not None]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _under(cfg: DictConfig, study: Study, arm: Arm) -> DictConfig:
    """The configuration under which an arm is evaluated."""
    changed = cfg.copy()
    changed.evaluation.episodes_per_task = study.episodes_of(arm)
    for override in arm.overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(changed, key, yaml.safe_load(value))
    return changed


def prompted_by(trained: Run, study: Study, arm: Arm) -> Run:
    """The run with the configuration of an arm, and the demonstrations that this one has."""
    prompted = dataclasses.replace(trained, cfg=_under(trained.cfg, study, arm))
    if any(o.startswith(("data.support", "evaluation.demonstration=")) for o in arm.overrides):
        prompted.family.demonstrate(prompted)  # type: ignore[attr-defined]
    return prompted


def _evaluate(job: Job, place: Place, trained: Run, arm: Arm, backend: Backend) -> None:
    """Evaluate an arm, some tasks at a time; those whose episodes are all there are left out."""
    path = place.store.path(job.study, job.variant, job.seed, arm)
    prompted = prompted_by(trained, job.study, arm)
    tasks = trained.split.held_out if arm.group == "unseen" else trained.split.train
    stored = read_episodes(path) if path.exists() else []
    rows: list[EpisodeResult] = []
    goals = job.study.episodes_of(arm)
    for start in range(0, len(tasks), TASKS_AT_A_TIME):
        some = tasks[start : start + TASKS_AT_A_TIME]
        there = [episode for episode in stored if episode.task in some]
        wanted = {(task, goal) for task in some for goal in range(goals)}
        if not wanted <= {(episode.task, episode.goal_index) for episode in there}:
            begun = time.monotonic()
            there = evaluate_tasks(prompted, some, tasks, f"{job.name}, {arm.name}", backend)
            _note_time(job, place, arm, time.monotonic() - begun, len(there))
            write_episodes(path, [*rows, *there])
        rows += there


def evaluate_tasks(
    run: Run, tasks: Sequence[str], among: Sequence[str], name: str, backend: Backend
) -> list[EpisodeResult]:
    """The episodes of a run's policy on some tasks, under the prompts of its configuration.

    Args:
        run: its policy is there.
        tasks: to evaluate.
        among: those that another task's prompts are taken from; of a single one: all of the run's.
        name: of what is evaluated, for messages.
        backend: its workers.

    Raises:
        DataError: if an episode crashed: it says nothing about the policy.
    """
    tables = evaluation_prompts(run, among if len(among) > 1 else None)
    evaluator = make_evaluator(run, tasks, run.cfg.progress, backend=backend)
    episodes = evaluator(evaluated_policy(run, run.policy), tables)
    crashed = [episode.error for episode in episodes if episode.error is not None]
    if crashed:
        raise DataError(f"{name}: {len(crashed)} episodes crashed: {crashed[0]}")
    return episodes


def _note_time(job: Job, place: Place, arm: Arm, seconds: float, episodes: int) -> None:
    about = place.store.training(job.study, job.variant, job.seed)
    times = about.setdefault("evaluation", {})
    time_of = times.setdefault(f"{arm.name}-{arm.group}", {"seconds": 0.0, "episodes": 0})
    time_of["seconds"] = round(time_of["seconds"] + seconds, 1)
    time_of["episodes"] += episodes
    write_json(place.store.training_path(job.study, job.variant, job.seed), about)
