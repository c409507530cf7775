"""Errors that a user can fix, and notices: one line that names the problem and the remedy."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


class UserError(Exception):
    """Base of every error that a user can fix.

    Commands print the message alone and exit with :attr:`exit_code`, see
    :func:`~llmdpd_torchrl.utils.cli.run_command`; anything that is not a ``UserError`` is a bug and
    keeps its traceback.

    Attributes:
        exit_code: of the command.
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
    """What another library's error says, for a message of one line; empty if it says nothing.

    Examples:
        >>> first_line(ValueError("no such file\\nand a long story"))
        'no such file'
    """
    return (str(error).splitlines() or [""])[0]


def notice(message: str) -> None:
    """Print one line to stderr without breaking a progress bar."""
    tqdm.write(f"note: {message}", file=sys.stderr)
