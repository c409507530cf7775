"""What all commands do alike: one line and an exit code for an error that the user can mend."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.files import DISK_ERRORS

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["hydra_command", "run_command", "run_command_line"]

_FLAG = "--debug"
_DEBUG_HELP = "show where an error came from, above its one line"


def run_command(work: Callable[[], int], *, debug: bool = False) -> int:
    """Do a command's work and return its exit code.

    Args:
        work: returns the exit code.
        debug: whether to show the traceback of an error that the user can mend, with the errors
            behind it.

    Returns:
        what ``work`` does; 2, with one line on stderr, for a :class:`UserError` and for a disk that
        can not be written. Anything else is a bug and is raised.

    Examples:
        >>> run_command(lambda: 1)
        1
    """
    try:
        return work()
    except UserError as error:
        shown: Exception = error
        message = str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        shown = error
        message = (
            f"can not write {error.filename or 'a file'} ({os.strerror(error.errno)}): make room, "
            "then run the same command again"
        )
    if debug:
        _show_causes(shown)
        traceback.print_exception(shown)
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 (it is what commands say)
    return 2


def run_command_line(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments of a command and do its work, as :func:`run_command` does.

    Args:
        parser: of everything but ``--debug``, which is understood anywhere among the arguments.
        work: takes what was parsed and returns the exit code.
        arguments: default: those of the process.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("folder")
        >>> run_command_line(parser, lambda options: len(options.folder), ["four", "--debug"])
        4
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser.add_argument(_FLAG, action="store_true", help=_DEBUG_HELP)
    debug = _FLAG in given
    options = parser.parse_args([argument for argument in given if argument != _FLAG])
    return run_command(lambda: work(options), debug=debug)


def hydra_command(
    config_path: str, config_name: str
) -> Callable[[Callable[[DictConfig], int]], Callable[[], int]]:
    """``hydra.main`` for a function that returns an exit code; Hydra's errors too are one line.

    The setting ``debug``, or ``--debug``, shows the traceback of an error. A sweep (``-m``) returns
    the highest exit code.

    Args:
        config_path: folder of the settings, seen from the function's file.
        config_name: of the file with the defaults; it has a setting ``debug``.
    """
    starter = os.getpid()

    def decorate(function: Callable[[DictConfig], int]) -> Callable[[], int]:
        folder = (Path(inspect.getfile(function)).parent / config_path).resolve()

        @functools.wraps(function)
        def command() -> int:
            import hydra  # not needed by those who only parse arguments

            codes = [0]

            @functools.wraps(function)
            def job(cfg: DictConfig) -> None:
                with _config_errors():
                    debug = bool(cfg.debug)
                code = run_command(_translated(function, cfg), debug=debug)
                codes.append(code)
                if code and os.getpid() != starter:
                    sys.exit(code)  # a launcher's other process has no other way to tell

            start = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)
            with _for_hydra() as debug:
                code = run_command(_translated(start(job)), debug=debug)
            return max(code, *codes)

        return command

    return decorate


def _translated(function: Callable[..., Any], *arguments: Any) -> Callable[[], int]:
    """``function`` on its arguments, with the errors of Hydra as ours."""

    def work() -> int:
        with _config_errors():
            return function(*arguments) or 0

    return work


@contextmanager
def _config_errors() -> Iterator[None]:
    """What Hydra and OmegaConf find wrong with the settings is a :class:`ConfigError`."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        for rest in ("Config search path:", "See https://", "object_type="):  # says nothing more
            text = text.partition(rest)[0]
        raise ConfigError(f"{' '.join(text.split())} (--help lists all settings)") from error


@contextmanager
def _for_hydra() -> Iterator[bool]:
    """Put ``--debug`` as Hydra takes it, and let Hydra raise what it would print.

    Yields:
        whether the traceback of an error is wanted.
    """
    name = "HYDRA_FULL_ERROR"
    arguments, full = sys.argv, os.environ.get(name)
    debug = full == "1" or bool({_FLAG, "debug=true"} & {item.lower() for item in arguments})
    if _FLAG in arguments:
        rest = [argument for argument in arguments if argument != _FLAG]
        sys.argv = [*rest, "debug=true"]
    os.environ[name] = "1"
    try:
        yield debug
    finally:
        sys.argv = arguments
        os.environ.pop(name)
        if full is not None:
            os.environ[name] = full


def _show_causes(error: BaseException) -> None:
    """Undo ``from None``, which keeps the one line short, all the way down."""
    before: BaseException | None = error
    while before is not None:
        before.__suppress_context__ = before.__cause__ is not None
        before = before.__cause__ or before.__context__
