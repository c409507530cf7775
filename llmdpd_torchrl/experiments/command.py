"""A command with a Hydra configuration: one line for an error, an exit code, an objective."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmdpd_torchrl
from llmdpd_torchrl.utils.errors import DEBUG_FLAG, ConfigError, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def config_folder() -> Path:
    """Folder of the YAML files: in an installed package, or beside it in a checkout."""
    package = Path(llmdpd_torchrl.__file__).parent
    return next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())


def compose_settings(
    name: str, overrides: Sequence[str], *, folder: str | os.PathLike[str] | None = None
) -> DictConfig:
    """The configuration that a command with these overrides runs, made in this process.

    Args:
        name: of the primary file, ``"train_metaworld"`` or ``"train_d4rl"``.
        overrides: as on the command line.
        folder: of the YAML files; default: :func:`config_folder`.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(Path(folder or config_folder()).resolve()), version_base="1.3"):
        cfg = _translated(lambda: compose(name, list(overrides), return_hydra_config=True))
    OmegaConf.set_struct(cfg, False)
    return _with_changes(cfg, cfg.pop("hydra").job.override_dirname)


def hydra_command(
    config_name: str, *, folder: str | os.PathLike[str] | None = None
) -> Callable[[Callable[[DictConfig], float]], Callable[..., int]]:
    """``hydra.main`` for a command that returns its exit code.

    The decorated function returns its objective, which a sweeper optimises (nan if it failed), and
    raises :class:`UserError`. A sweep (``-m``) returns the highest exit code.

    The command takes its arguments, by default those of the process. The primary YAML file,
    ``config_name`` in ``folder`` (default: :func:`config_folder`), has the keys ``debug`` and
    ``changes``.
    """
    starter = os.getpid()

    def decorate(function: Callable[[DictConfig], float]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(given: Sequence[str] | None = None) -> int:
            import hydra  # not needed by commands that only parse arguments
            from hydra.core.hydra_config import HydraConfig

            codes = [0]

            @functools.wraps(function)
            def job(cfg: DictConfig) -> float:
                objective = math.nan

                def work() -> int:
                    nonlocal objective
                    _with_changes(cfg, HydraConfig.get().job.override_dirname)
                    objective = _translated(lambda: function(cfg))
                    return 0

                codes.append(run_command(work, debug=_translated(lambda: bool(cfg.debug))))
                if codes[-1] and os.getpid() != starter:
                    sys.exit(codes[-1])  # the only way to tell from a launcher's other process
                return objective

            path = str(Path(folder or config_folder()).resolve())
            start = hydra.main(version_base="1.3", config_path=path, config_name=config_name)
            arguments, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
            sys.argv = [arguments[0], *(arguments[1:] if given is None else given)]
            if DEBUG_FLAG in sys.argv:
                sys.argv = [*(item for item in sys.argv if item != DEBUG_FLAG), "debug=true"]
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
            debug = full == "1" or "debug=true" in map(str.lower, sys.argv)
            try:
                code = run_command(lambda: _translated(start(job)) or 0, debug=debug)
            finally:
                sys.argv = arguments
                os.environ.pop("HYDRA_FULL_ERROR")
                if full is not None:
                    os.environ["HYDRA_FULL_ERROR"] = full
            return max(code, *codes)

        return command

    return decorate


def _with_changes(cfg: DictConfig, overrides: str) -> DictConfig:
    """Fill in ``changes``, a part of the run's name, with the overrides that distinguish it."""
    overrides = overrides.replace("+", "")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", overrides).strip("_")
    if name != overrides or len(name) > 60:
        name = f"{name[:60]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"
    if overrides and cfg.get("changes") == "":
        cfg.changes = f"-{name}"
    return cfg


def _translated(call: Callable[[], Any]) -> Any:
    """The result of a call; an error of Hydra or OmegaConf in it is a :class:`ConfigError`."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return call()
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        for rest in ("Config search path:", "See https://", "object_type="):  # of no use here
            text = text.partition(rest)[0]
        hint = "--help lists all settings"
        if isinstance(error, OverrideParseException) and "=" in error.override:
            key = error.override.partition("=")[0]
            hint = f"special characters need quotes inside quotes: '{key}=\"...\"'"
        raise ConfigError(f"{' '.join(text.split())} ({hint})") from error
