"""What benchmarks of policies share: settings of a training, and episodes of what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.experiments.context import Run
from llmdpd_torchrl.experiments.evaluate import evaluation_prompts, make_evaluator
from llmdpd_torchrl.utils.backends import Backend
from llmdpd_torchrl.utils.errors import ConfigError, DataError, first_line

ROOT = Path(__file__).parents[2]


def read_settings(folder: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """A configuration with settings changed, as the command line of an example makes it.

    Args:
        folder: of the configurations, from the repository's root.
        name: of the configuration.
        overrides: ``key=value``.

    Raises:
        ConfigError: if there is no such setting.
    """
    with initialize_config_dir(str(ROOT / folder), version_base="1.3"):
        try:
            cfg = compose(name, list(overrides))
        except HydraException as error:
            raise ConfigError(f"{name}: {first_line(error)}") from None
    OmegaConf.set_struct(cfg, False)
    return cfg


def play(
    run: Run,
    tasks: Sequence[str],
    among: Sequence[str] | None,
    name: str,
    backend: Backend | None = None,
) -> list[EpisodeResult]:
    """The episodes of a run's policy on some tasks, under what its configuration lets be shown.

    Args:
        run: whose policy is there.
        tasks: to be played.
        among: those that another task's prompts are taken from; ``None``: all of the run's.
        name: of what is played, for messages.
        backend: whose workers play, and go on to live; default: workers of their own.

    Raises:
        DataError: if an episode broke off: it says nothing about the policy.
    """
    tables = evaluation_prompts(run, among)
    evaluator = make_evaluator(run, tasks, run.cfg.progress, backend=backend)
    try:
        episodes = evaluator(run.policy, tables)
    finally:
        if backend is None:
            evaluator.close()
    broken = [episode.error for episode in episodes if episode.error is not None]
    if broken:
        raise DataError(f"{name}: {len(broken)} episodes broke off: {broken[0]}")
    return episodes
