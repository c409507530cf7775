"""Errors that a user can fix, each one line, and the commands that print them."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from tqdm.auto import tqdm

DEBUG_FLAG = "--debug"
"""Accepted by every command: prints the traceback of an error above its line."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
"""``OSError`` numbers that the disk causes: full, over quota, read-only, broken, not permitted."""


class UserError(Exception):
    """Base of every error that a user can fix; anything else is a bug and keeps its traceback.

    Attributes:
        exit_code: of a command, which prints the message alone, see :func:`run_command`.
    """

    exit_code = 2


class ConfigError(UserError):
    """A setting is missing, unknown or out of range."""


class DataError(UserError):
    """A dataset is missing, damaged, or does not fit what is asked of it."""


class DamagedError(DataError):
    """A file is not, byte for byte, what was written."""


class IncompleteError(UserError):
    """A result is there, but a part of it is missing."""

    exit_code = 1


class DivergenceError(UserError, FloatingPointError):
    """A loss or a gradient of the training is not a finite number."""


class PromptError(UserError):
    """A text or trajectory prompt, or the language model behind it, cannot be used."""


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of one line; empty if it says nothing."""
    return (str(error).splitlines() or [""])[0]


def import_optional(
    name: str, purpose: str, extra: str, kind: type[UserError] = ConfigError
) -> ModuleType:
    """Import a package of an extra, or raise an error of ``kind`` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise kind(
            f'{purpose} needs the package {name} ({error}): pip install "llmdpd_torchrl[{extra}]"'
        ) from error


@contextmanager
def explain_hub_errors(
    what: str, kind: type[UserError] = DataError, *, remedy: str = ""
) -> Iterator[None]:
    """Turn what the Hub's client, or transformers above it, raises into one line.

    The line is ``what`` could not be done, the reason, and the ``remedy`` where the Hub is not
    reached or the reason is not a known one.
    """
    from huggingface_hub import errors
    from safetensors import SafetensorError

    hint = f"; {remedy}" if remedy else ""
    no_model = "the Hub has no such model, or it is private and HF_TOKEN is not set"
    unreachable = f"the Hub cannot be reached and it is not in the cache{hint}"
    reasons: dict[type[BaseException], str] = {
        errors.GatedRepoError: "its licence must be accepted on its page first, then set HF_TOKEN",
        errors.RevisionNotFoundError: "the Hub has no such revision of it",
        errors.RepositoryNotFoundError: no_model,
        errors.HFValidationError: no_model,
        errors.OfflineModeIsEnabled: f"HF_HUB_OFFLINE is set and it is not in the cache{hint}",
        errors.HTTPError: unreachable,
        ConnectionError: unreachable,
        errors.LocalEntryNotFoundError: unreachable,
    }
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, errors.HTTPError) as error:
        causes: list[BaseException] = [error]  # under transformers', the Hub client's says more
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run; use another model"
        else:
            reason = f"{first_line(error) or type(error).__name__}{hint}"
        known = (why for of, why in reasons.items() if any(isinstance(c, of) for c in causes))
        raise kind(f"{what}: {next(known, reason)}") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the Hub's client from a line for each time that it tries again."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def notice(message: str) -> None:
    """Print one line to stderr without breaking a progress bar."""
    tqdm.write(f"note: {message}", file=sys.stderr)


def run_command(work: Callable[[], int], *, debug: bool = False) -> int:
    """Return the exit code of ``work``, or of its :class:`UserError`, of which stderr has a line.

    An error of several mistakes is a line each.

    A disk that cannot be written is one line, too. ``debug`` adds the traceback with its causes.
    """
    try:
        return work()
    except UserError as error:
        cause: BaseException = error
        code, message = error.exit_code, str(error)
    except BrokenPipeError:
        try:
            print(flush=True)  # noqa: T201 (tells which pipe it was)
        except BrokenPipeError:  # who reads the output, `head` say, has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        raise  # another pipe's, a worker's say
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file, reason = error.filename or "a file", os.strerror(error.errno)
        cause, code = error, 2
        message = f"cannot write {file} ({reason}): make room, then run the same command again"
        if error.errno in (errno.EACCES, errno.EROFS):
            message = f"no access to {file} ({reason}): allow it, or choose another folder"
    if debug:
        inner: BaseException | None = cause
        while inner is not None:  # undo `from None`, which keeps the line short
            inner.__suppress_context__ = inner.__cause__ is not None
            inner = inner.__cause__ or inner.__context__
        traceback.print_exception(cause)
    for line in message.splitlines() or [message]:
        print(f"error: {line}", file=sys.stderr)  # noqa: T201 (commands print)
    return code


def run_command_line(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments of a command and do its work, as :func:`run_command` does.

    The parser need not know :data:`DEBUG_FLAG`, which may stand anywhere among the arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser.add_argument(DEBUG_FLAG, action="store_true", help="print the traceback of an error")
    options = parser.parse_args([argument for argument in given if argument != DEBUG_FLAG])
    return run_command(lambda: work(options), debug=DEBUG_FLAG in given)
