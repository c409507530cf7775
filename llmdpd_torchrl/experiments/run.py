"""A run: its stages one after another, each skipped where its output is there already."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from filelock import Timeout
from omegaconf import DictConfig, ListConfig, OmegaConf

from llmdpd_torchrl.baselines import get_algorithm
from llmdpd_torchrl.evaluation.controls import check_control
from llmdpd_torchrl.evaluation.plots import plot_learning_curves
from llmdpd_torchrl.evaluation.report import write_report
from llmdpd_torchrl.evaluation.results import git_revision, versions
from llmdpd_torchrl.experiments.config import Family, Run, choose_device, plain, text_encoder
from llmdpd_torchrl.experiments.evaluate import evaluate, record
from llmdpd_torchrl.experiments.sweep import share_cores, sweep_folder
from llmdpd_torchrl.experiments.train import train
from llmdpd_torchrl.modules.build import make_networks
from llmdpd_torchrl.modules.config import NetworkConfig, Prompt
from llmdpd_torchrl.tasks import TaskSplit
from llmdpd_torchrl.trainers import check_logger
from llmdpd_torchrl.trainers.ranks import first_rank_first, join_ranks
from llmdpd_torchrl.utils.errors import ConfigError, IncompleteError, import_optional
from llmdpd_torchrl.utils.files import (
    folder_lock,
    make_writable_folder,
    write_atomic,
    write_json,
)
from llmdpd_torchrl.utils.processes import available_cores, check_backend
from llmdpd_torchrl.utils.settings import check_all

#: The settings that a training depends on, beside the data and the family's own settings.
_IDENTITY = (
    "seed", "algorithm", "prompt", "trajectory_prompt", "network", "loss", "optim",
)  # fmt: skip
#: What older trainings did not have, and the value that leaves a training as they were.
_ADDED = {
    ("trajectory_prompt", "copies"): 1,
    ("network", "critic_layer_norm"): False,
    ("network", "critic_bins"): None,
    ("network", "candidates"): 1,
    ("network", "one_step"): False,
    ("network", "denoiser"): None,
    ("network", "denoiser_options"): {},
    ("loss", "distillation"): 10.0,
    ("loss", "bounded"): False,
    ("loss", "critic_loss"): {"expectile": 0.5},
    ("optim", "tau"): 0.005,
    ("network", "text_mixture"): False,
}
#: Without effect on the results: a job that starts again on another machine may have others.
_OF_THE_MACHINE = (
    "device", "progress", "debug", "resume", "data.workers", "evaluation.workers",
    "evaluation.backend", "trainer.threads", "trainer.compile",
)  # fmt: skip


def run_experiment(cfg: DictConfig, family: Family) -> float:
    """Run the stages up to ``cfg.until`` and return the objective of a sweep.

    It is the mean success rate, or score, of the unseen tasks, or of the seen ones if there are no
    others; nan without an evaluation. ``IncompleteError``: an episode of the evaluation crashed.
    """
    # Not before: importing torchrl sets the level itself.
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    started = time.monotonic()
    run = prepare(cfg, family)
    share_cores(cfg)
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(join_ranks(run.device))
        if cfg.optim.batch_size % mine.size:
            raise ConfigError(
                f"optim.batch_size is {cfg.optim.batch_size}: {mine.size} ranks cannot share it "
                "evenly"
            )
        if not mine.is_first:
            return _train_beside(run)
        stack.enter_context(_only_run(run.output))
        write_environment(run)
        for stage in STAGES:
            if stage == "evaluate" and not family.evaluates():
                print("evaluate: no task has an environment; the policy is trained")
                plot_learning_curves(run.output / "metrics.csv", run.output / "learning_curves.png")
                break
            run_stage(run, stage)
            if stage == cfg.until:
                break
    if run.trained:  # the durations of reused stages say nothing
        write_json(run.output / "timings.json", {"stage_seconds": run.seconds})
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes ({spent})")
    print(f"artefacts: {run.output}")
    if run.failed:
        raise IncompleteError(
            f"{run.failed} episodes of the evaluation crashed and count as failures; "
            f"{run.output / 'results.json'} says why (force=[evaluate] evaluates again)"
        )
    return run.objective


def _train_beside(run: Run) -> float:
    """What all ranks but the first do: read what that has collected, and train."""
    with contextlib.redirect_stdout(io.StringIO()):
        for stage in ("collect", "embed", "train"):
            run_stage(run, stage)
            if stage == run.cfg.until:
                break
    return math.nan


@contextlib.contextmanager
def _only_run(output: Path) -> Iterator[None]:
    """Hold the lock of the output folder, which the system releases if the process is killed."""
    try:
        held = folder_lock(output).acquire(timeout=0)
    except Timeout:
        path = output / "environment.json"
        holder = json.loads(path.read_text()) if path.exists() else {}
        raise ConfigError(
            f"output_dir is {output}: the process {holder.get('pid', '')} on "
            f"{holder.get('host', 'another machine')} is writing there; wait for it, or give this "
            "run another name"
        ) from None
    with held:
        yield


def run_stage(run: Run, stage: str) -> None:
    """Run one of :data:`STAGES` and record its duration."""
    begun = time.monotonic()
    with first_rank_first() if stage in ("collect", "embed") else contextlib.nullcontext():
        STAGES[stage](run)
    run.seconds[stage] = round(time.monotonic() - begun, 1)


def check_settings(cfg: DictConfig, family: Family) -> None:
    """Check the settings alone: first types and ranges, then whether they fit together.

    Raises:
        ConfigError: with a line for every mistake.
    """
    settings = plain(cfg)
    checks: list[Callable[[], object]] = [lambda: family.schema(**settings)]
    if isinstance(cfg.network, DictConfig) and cfg.prompt in get_args(Prompt):
        checks.append(lambda: _network(cfg))
    if isinstance(cfg.loss, DictConfig):
        checks.append(lambda: get_algorithm(cfg.algorithm).settings(**settings["loss"]))
    check_all(*checks)
    check_all(
        lambda: choose_device(cfg.device),
        lambda: _check_intervals(cfg),
        lambda: _check_simulator(cfg, family),
        lambda: check_backend(cfg.evaluation.backend),
        lambda: check_logger(cfg.logger.kind, cfg.logger.get("wandb_mode")),
        lambda: _check_algorithm(cfg),
        lambda: family.check(cfg),
    )


def prepare(cfg: DictConfig, family: Family) -> Run:
    """Check what can be checked before any work is done, and make the output folder."""
    check_settings(cfg, family)
    split = family.split(cfg)
    check_all(
        lambda: check_control(
            cfg.evaluation.control, cfg.evaluation.demonstrations, _network(cfg), split.tasks
        ),
        lambda: _check_state(cfg),
        lambda: _check_video(cfg.video.tasks or (), split),
    )
    output = make_writable_folder(cfg.output_dir, "output", "output_dir")
    return Run(cfg, family, output, split, choose_device(cfg.device))


def _network(cfg: DictConfig) -> NetworkConfig:
    return NetworkConfig(**plain(cfg.network) | {"prompt": cfg.prompt})


def _check_intervals(cfg: DictConfig) -> None:
    if cfg.evaluation.every % cfg.trainer.log_every:
        raise ConfigError(
            f"evaluation.every is {cfg.evaluation.every}: use a multiple of trainer.log_every, "
            f"which is {cfg.trainer.log_every}"
        )
    round_of = math.gcd(cfg.trainer.total_updates, cfg.trainer.log_every)
    if cfg.trainer.save_every % round_of:
        raise ConfigError(
            f"trainer.save_every is {cfg.trainer.save_every}: use a multiple of {round_of}, the "
            "updates after which the trainer can save"
        )


def _check_simulator(cfg: DictConfig, family: Family) -> None:
    if cfg.until not in ("collect", "embed", "train") or cfg.evaluation.every:
        purpose = "an evaluation (until=train does without)"
        import_optional(family.simulator, purpose, "metaworld")


def _check_algorithm(cfg: DictConfig) -> None:
    """Networks and loss refuse what does not fit together."""
    algorithm, network = get_algorithm(cfg.algorithm), _network(cfg)
    algorithm.check(cfg.algorithm, network, plain(cfg.loss))
    with torch.random.fork_rng(devices=[]):
        try:
            algorithm.make_loss(make_networks(network), None, **plain(cfg.loss))
        except ValueError as error:
            raise ConfigError(f"network or loss: {error}") from None


def _check_state(cfg: DictConfig) -> None:
    if cfg.evaluation.hide_state and not _network(cfg).retrieves:
        raise ConfigError(
            "evaluation.hide_state is true: only conditioning=retrieved with a trajectory prompt "
            "acts without the state"
        )


def _check_video(tasks: Sequence[str], split: TaskSplit) -> None:
    for task in tasks:
        if task not in split.tasks:
            raise ConfigError(
                f"video.tasks: unknown task {task!r} in split {split.name!r}: choose some of "
                f"{', '.join(split.tasks)}"
            )


def collect(run: Run) -> None:
    """Get the data, and the fingerprint of the training on them."""
    run.family.collect(run)
    run.fingerprint = fingerprint(run.cfg, run.family, run.dataset.manifest.data_hash)


def fingerprint(cfg: DictConfig, family: Family, data_hash: str) -> str:
    """Hash of everything that a training depends on."""
    settings = {key: plain(cfg[key]) for key in _IDENTITY} | {"text_encoder": text_encoder(cfg)}
    for (group, key), usual in _ADDED.items():
        if settings[group].get(key) == usual:
            settings[group].pop(key, None)
    if not _network(cfg).retrieves:
        settings["network"].pop("trajectory_spacing", None)
    identity = [
        settings,
        cfg.trainer.total_updates,
        family.identity(cfg),
        data_hash,
    ]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def report(run: Run) -> None:
    """Write ``report/report.html``, one page with everything on it."""
    print(f"report: {write_report(run.output)}")


def write_environment(run: Run) -> None:
    """The resolved configuration and the versions and machine that it ran on.

    Raises:
        ConfigError: if another job of the same sweep, with other settings, has written there.
    """
    resolved = OmegaConf.create(OmegaConf.to_yaml(run.cfg, resolve=True))
    config, environment = run.output / "config.yaml", run.output / "environment.json"
    sweep = sweep_folder()
    if sweep is not None and environment.exists() and config.exists():
        is_same = json.loads(environment.read_text()).get("sweep") == str(sweep.resolve())
        if is_same and _comparable(OmegaConf.load(config)) != _comparable(resolved):
            raise ConfigError(
                f"output_dir is {run.output}: another run of this sweep has written there; leave "
                "name and output_dir as they are, or let them contain what is swept"
            )
    write_atomic(config, lambda path: OmegaConf.save(resolved, path))
    write_json(
        environment,
        {
            "versions": versions(),
            "seed": run.cfg.seed,
            "device": str(run.device),
            "git_revision": git_revision(),
            "cores": available_cores(),
            "command": sys.argv,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "sweep": None if sweep is None else str(sweep.resolve()),
        },
    )


def _comparable(cfg: DictConfig | ListConfig) -> DictConfig | ListConfig:
    """A resolved configuration without :data:`_OF_THE_MACHINE`."""
    cfg = cfg.copy()
    for key in _OF_THE_MACHINE:
        OmegaConf.update(cfg, key, None)
    return cfg


def embed(run: Run) -> None:
    """Look up the text embeddings; the language model runs only for texts without a stored one."""
    if run.cfg.prompt in ("both", "text"):
        run.training_prompts.text = run.evaluation_prompts.text = run.family.embed(run)


STAGES: dict[str, Callable[[Run], None]] = {
    "collect": collect,
    "embed": embed,
    "train": train,
    "evaluate": evaluate,
    "video": record,
    "report": report,
}
"""In their order."""
