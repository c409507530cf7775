"""A command with a Hydra configuration: a line for each mistake, an exit code, an objective."""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmdpd_torchrl
from llmdpd_torchrl.utils.errors import DEBUG_FLAG, ConfigError, UserError, first_line, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


_SWEEP = ("-m", "--multirun")  # Hydra wants it before all overrides, or after them
_PLUGINS = dict.fromkeys(
    ("joblib", "submitit_local", "submitit_slurm", "optuna"), 'pip install "llmdpd_torchrl[sweep]"'
)
"""How to install launchers and sweepers of Hydra's."""


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
    config_name: str,
    *,
    check: Callable[[DictConfig], object] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Callable[[Callable[[DictConfig], float]], Callable[..., int]]:
    """``hydra.main`` for a command that returns its exit code.

    The decorated function returns its objective, which a sweeper optimises, and raises
    :class:`UserError`. Of a job that failed, or has no objective (nan), a sweeper gets ``None``.
    A sweep (``-m``) returns the highest exit code, also of jobs that a launcher runs in other
    processes, see :class:`~llmdpd_torchrl.experiments.sweep.SweepSummary`.

    The command takes its arguments, by default those of the process. The primary YAML file,
    ``config_name`` in ``folder`` (default: :func:`config_folder`), has the keys ``debug`` and
    ``changes``. Where Hydra refuses an override, ``check`` says what else is wrong.
    """

    def decorate(function: Callable[[DictConfig], float]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(given: Sequence[str] | None = None) -> int:
            import hydra  # not needed by commands that only parse arguments
            from hydra.core.hydra_config import HydraConfig

            from llmdpd_torchrl.experiments.sweep import SweepSummary, note_job, sweep_folder

            codes = [0]

            @functools.wraps(function)
            def job(cfg: DictConfig) -> float | None:
                objective, said = math.nan, ""

                def work() -> int:
                    nonlocal objective, said
                    _with_changes(cfg, HydraConfig.get().job.override_dirname)
                    try:
                        objective = _translated(lambda: function(cfg))
                    except UserError as error:
                        said = str(error)
                        raise
                    return 0

                try:
                    codes.append(run_command(work, debug=_translated(lambda: bool(cfg.debug))))
                except Exception as error:  # a bug
                    if sweep_folder() is not None:  # Optuna's goes on and does not show it
                        traceback.print_exc()
                        note_job(cfg, math.nan, 1, f"{type(error).__name__}: {first_line(error)}")
                    raise
                note_job(cfg, objective, codes[-1], said)
                return objective if math.isfinite(objective) else None

            path = str(Path(folder or config_folder()).resolve())
            start = hydra.main(version_base="1.3", config_path=path, config_name=config_name)
            arguments, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
            sys.argv = [arguments[0], *(arguments[1:] if given is None else given)]
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda item: item not in _SWEEP)
            if DEBUG_FLAG in sys.argv:
                sys.argv = [*(item for item in sys.argv if item != DEBUG_FLAG), "debug=true"]
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
            debug = full == "1" or "debug=true" in map(str.lower, sys.argv)

            def compose_and_run() -> int:
                try:
                    _translated(start(job))
                except ConfigError as error:
                    lines = _refused(config_name, sys.argv[1:], check, path)
                    raise ConfigError("\n".join(lines or [str(error)])) from error
                return 0

            SweepSummary.codes = []
            try:
                code = run_command(compose_and_run, debug=debug)
            finally:
                sys.argv = arguments
                os.environ.pop("HYDRA_FULL_ERROR")
                if full is not None:
                    os.environ["HYDRA_FULL_ERROR"] = full
            return max(code, *codes, *SweepSummary.codes)

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


def _refused(
    name: str,
    arguments: Sequence[str],
    check: Callable[[DictConfig], object] | None,
    folder: str,
) -> list[str]:
    """A line for every argument that Hydra refuses, of which it names the first alone.

    What the configuration does not have, ``check`` says, with what it has; and what else is wrong.
    """
    flags = {item for item in arguments if item.startswith("-")}
    if flags - {*_SWEEP}:  # they can change what there is to choose from
        return []
    groups = [path.name for path in Path(folder).iterdir() if path.is_dir()]
    accepted: list[str] = []
    unknown: dict[str, str] = {}
    lines: list[str] = []
    for argument in (item for item in arguments if item not in flags):
        try:
            override = _first_value(argument)
            if override is None:
                continue
            compose_settings(name, [*accepted, override], folder=folder)
            accepted.append(override)
        except ConfigError as error:
            key = argument.partition("=")[0].lstrip("+~")
            near = difflib.get_close_matches(key, groups, n=1)
            if near and near[0] != key and "." not in key:
                lines.append(f"{key}: there is no such setting; {near[0]} is a group of them")
                continue
            try:
                compose_settings(name, [*accepted, f"++{argument}"], folder=folder)
            except ConfigError:
                lines.append(str(error) if key in str(error) else f"{argument}: {error}")
            else:
                accepted.append(f"++{argument}")
                unknown[key] = str(error)
    found = []
    try:
        if check is not None:
            check(compose_settings(name, accepted, folder=folder))
    except UserError as error:
        found = str(error).splitlines()
    lines += (said for key, said in unknown.items() if not any(key in line for line in found))
    return [*lines, *found]


def _first_value(argument: str) -> str | None:
    """An override without the other values that a sweep gives it; ``None``: they are not listed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep
    from hydra.errors import HydraException

    (override,) = _translated(lambda: OverridesParser.create().parse_overrides([argument]))
    if not override.is_sweep_override():
        return argument
    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            first = str(value.start)
        else:
            first = next(override.sweep_string_iterator())
    except (HydraException, StopIteration):  # glob(*), or an empty range
        return None
    return f"{override.get_key_element()}={first}"


def _translated(call: Callable[[], Any]) -> Any:
    """The result of a call; an error of Hydra or OmegaConf in it is a :class:`ConfigError`.

    Other errors are not touched. Hydra and Optuna raise a plain ``ValueError``, too, each of which
    is known by its text.
    """
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    own = (HydraException, OmegaConfBaseException)  # some are ValueErrors
    try:
        return call()
    except (*own, ValueError) as error:
        text, hint = str(error), "--help lists all settings"
        if not isinstance(error, own):
            if type(error) is ValueError and text.startswith("No trials are completed"):
                raise ConfigError("no trial of the sweep has a result") from error
            if type(error) is not ValueError or not text.startswith("Config group override"):
                raise
        for rest in ("Config search path:", "See https://", "object_type="):  # of no use here
            text = text.partition(rest)[0]
        if isinstance(error, OverrideParseException) and "=" in error.override:
            key = error.override.partition("=")[0]
            hint = f"special characters need quotes inside quotes: '{key}=\"...\"'"
        missing = re.search(r"Could not (?:find|load) '((?:hydra/)?\w+)/(\w+)", text)
        if missing and missing[1].startswith("hydra/") and missing[2] in _PLUGINS:
            text, hint = f"{missing[1]}: {missing[2]} is not installed", _PLUGINS[missing[2]]
        elif missing and missing[1] == "experiment":
            studies = sorted(path.name for path in (config_folder() / "experiment").glob("*/"))
            hint = f"and the variants of studies: {', '.join(f'{name}/*' for name in studies)}"
        elif missing and missing[1] == "text_encoder":
            hint = "another model, or a folder: text_encoder.model=NAME"
        raise ConfigError(f"{' '.join(text.split())} ({hint})") from error
