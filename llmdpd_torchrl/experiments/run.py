"""A run: its stages one after another, each skipped where its output is there already."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.baselines import get_algorithm
from llmdpd_torchrl.evaluation.controls import check_control
from llmdpd_torchrl.evaluation.report import write_report
from llmdpd_torchrl.evaluation.results import git_revision, versions
from llmdpd_torchrl.experiments.config import (
    check_lists,
    check_numbers,
    check_texts,
    check_whole_numbers,
    plain,
    read,
)
from llmdpd_torchrl.experiments.context import Family, Run
from llmdpd_torchrl.experiments.evaluate import evaluate, record
from llmdpd_torchrl.experiments.train import train
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.utils.backends import check_backend
from llmdpd_torchrl.utils.cli import run_command
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import make_writable_folder, write_atomic, write_json
from llmdpd_torchrl.utils.processes import available_cores

__all__ = ["STAGES", "prepare", "run_experiment", "run_stage"]

#: What a training is a function of, beside the data and the family's own settings.
_IDENTITY = (
    "seed", "algorithm", "prompt", "text_encoder", "trajectory_prompt", "network", "loss", "optim",
)  # fmt: skip


def run_experiment(cfg: DictConfig, family: Family) -> int:
    """Run the stages up to ``cfg.until``.

    Returns:
        the exit code: 0; 1 if an episode of the evaluation broke off; 2 as
        :func:`~llmdpd_torchrl.utils.cli.run_command` has it.
    """
    # Not before: importing torchrl sets the level itself.
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    return run_command(lambda: _run_stages(cfg, family), debug=bool(cfg.debug))


def _run_stages(cfg: DictConfig, family: Family) -> int:
    started = time.monotonic()
    run = prepare(cfg, family)
    write_environment(run)
    for stage in STAGES:
        run_stage(run, stage)
        if stage == cfg.until:
            break
    if run.trained:  # the times of a run that reused its stages say nothing
        write_json(run.output / "timings.json", {"stage_seconds": run.seconds})
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes ({spent})")
    print(f"artefacts: {run.output}")
    if run.failed:
        print(
            f"error: {run.failed} episodes of the evaluation broke off and count as not solved; "
            f"{run.output / 'results.json'} says why (force=[evaluate] evaluates again)",
            file=sys.stderr,
        )
        return 1
    return 0


def run_stage(run: Run, stage: str) -> None:
    """Run one of :data:`STAGES`, and note how long it took."""
    begun = time.monotonic()
    STAGES[stage](run)
    run.seconds[stage] = round(time.monotonic() - begun, 1)


def prepare(cfg: DictConfig, family: Family) -> Run:
    """Check what can be checked before any work is done, and make the output folder.

    Raises:
        ConfigError: on a setting that is wrong.
    """
    _check_kinds(cfg)
    split = family.check(cfg)
    family.settings(cfg)
    network = read(NetworkConfig, cfg.network, "network", prompt=cfg.prompt)
    if cfg.until not in STAGES:
        raise ConfigError(f"until is {cfg.until!r}: it names the last stage, {', '.join(STAGES)}")
    if cfg.force is None or set(cfg.force) - {"train", "evaluate"}:
        raise ConfigError(f"force is {plain(cfg.force)}: it lists stages, train and evaluate")
    if cfg.evaluation.every % cfg.trainer.log_every:
        raise ConfigError(
            f"evaluation.every is {cfg.evaluation.every}: use a multiple of trainer.log_every, "
            f"which is {cfg.trainer.log_every}"
        )
    round_of = math.gcd(cfg.trainer.total_updates, cfg.trainer.log_every)
    if cfg.trainer.save_every % round_of:
        raise ConfigError(
            f"trainer.save_every is {cfg.trainer.save_every}: use a multiple of {round_of}, after "
            "which the trainer looks up"
        )
    share = cfg.evaluation.demonstration_share
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(
            f"evaluation.demonstration_share is {share!r}: it must be above 0 and at most 1"
        )
    if cfg.resume not in ("auto", "never"):
        raise ConfigError(f"resume is {cfg.resume!r}: use auto or never")
    check_backend(cfg.evaluation.backend, cfg.evaluation.workers)
    check_control(cfg.evaluation.control, cfg.evaluation.demonstrations, network, split.tasks)
    get_algorithm(cfg.algorithm).check(cfg.algorithm, network, plain(cfg.loss))
    for task in cfg.video.tasks or ():
        if task not in split.tasks:
            raise ConfigError(
                f"video.tasks: unknown task {task!r} in split {split.name!r}: choose some of "
                f"{', '.join(split.tasks)}"
            )
    return Run(cfg, family, make_writable_folder(cfg.output_dir, "output", "output_dir"), split)


def _check_kinds(cfg: DictConfig) -> None:
    """Texts, lists and numbers where they belong, of what all families have."""
    check_texts(cfg, ("output_dir", "data.folder", "logger.kind"))
    check_lists(cfg, ("video.tasks", "force"))
    check_whole_numbers(cfg, ("seed", "evaluation.every", "evaluation.confusion"), least=0)
    check_whole_numbers(
        cfg,
        ("trajectory_prompt.per_task", "optim.batch_size", "trainer.total_updates",
         "trainer.log_every", "trainer.save_every", "evaluation.demonstrations",
         "evaluation.every_episodes", "video.every", "video.width", "video.height"),
    )  # fmt: skip
    check_whole_numbers(cfg, ("trajectory_prompt.length",), least=2)
    check_whole_numbers(
        cfg, ("trainer.threads", "evaluation.workers", "data.workers"), optional=True
    )
    check_numbers(cfg, ("loss.gamma", "loss.reward_scale", "optim.learning_rate", "video.fps"))
    check_numbers(cfg, ("optim.max_grad_norm",), optional=True)
    if cfg.video.fps <= 0:
        raise ConfigError(f"video.fps is {cfg.video.fps}: it must be above 0")


def collect(run: Run) -> None:
    """Get the data, and the fingerprint of the training on them."""
    run.family.collect(run)
    identity = [
        {key: plain(run.cfg[key]) for key in _IDENTITY},
        run.cfg.trainer.total_updates,
        run.family.identity(run.cfg),
        run.dataset.manifest.data_hash,
    ]
    text = json.dumps(identity, sort_keys=True)
    run.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]


def report(run: Run) -> None:
    """Write ``report/report.html``, one page with everything on it."""
    print(f"report: {write_report(run.output)}")


def write_environment(run: Run) -> None:
    """The resolved configuration and a report of what it ran on."""
    resolved = OmegaConf.create(OmegaConf.to_yaml(run.cfg, resolve=True))
    write_atomic(run.output / "config.yaml", lambda path: OmegaConf.save(resolved, path))
    write_json(
        run.output / "environment.json",
        {
            "versions": versions(),
            "seed": run.cfg.seed,
            "git_revision": git_revision(),
            "cores": available_cores(),
            "command": sys.argv,
        },
    )


def embed(run: Run) -> None:
    """Look up the text embeddings; the language model runs only for texts it has not seen yet."""
    if run.cfg.prompt in ("both", "text"):
        run.family.embed(run)


STAGES: dict[str, Callable[[Run], None]] = {
    "collect": collect,
    "embed": embed,
    "train": train,
    "evaluate": evaluate,
    "film": record,
    "report": report,
}
"""In their order."""
