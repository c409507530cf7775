"""Commands: user errors are one line and an exit code; ``--debug`` adds the traceback."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import DISK_ERRORS

DEBUG_FLAG = "--debug"
"""Accepted by every command."""


def run_command(work: Callable[[], int], *, debug: bool = False) -> int:
    """Do a command's work and return its exit code.

    Args:
        work: returns the exit code.
        debug: whether to print the traceback of a user error, with its causes.

    Returns:
        the exit code of ``work``, or of a :class:`UserError`, which is one line on stderr, as is a
        disk that cannot be written. Any other exception is a bug and is raised.

    Examples:
        >>> run_command(lambda: 1)
        1
    """
    try:
        return work()
    except UserError as error:
        cause: BaseException = error
        code, message = error.exit_code, str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file, reason = error.filename or "a file", os.strerror(error.errno)
        cause, code = error, 2
        message = f"cannot write {file} ({reason}): make room, then run the same command again"
    if debug:
        inner: BaseException | None = cause
        while inner is not None:  # undo `from None`, which keeps the line short
            inner.__suppress_context__ = inner.__cause__ is not None
            inner = inner.__cause__ or inner.__context__
        traceback.print_exception(cause)
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 (commands print)
    return code


def run_command_line(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments of a command and do its work, as :func:`run_command` does.

    Args:
        parser: of everything but ``--debug``, which is accepted anywhere among the arguments.
        work: takes the parsed arguments and returns the exit code.
        arguments: default: those of the process.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("folder")
        >>> run_command_line(parser, lambda options: len(options.folder), ["four", "--debug"])
        4
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser.add_argument(DEBUG_FLAG, action="store_true", help="print the traceback of an error")
    options = parser.parse_args([argument for argument in given if argument != DEBUG_FLAG])
    return run_command(lambda: work(options), debug=DEBUG_FLAG in given)
