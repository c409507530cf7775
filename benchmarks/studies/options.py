"""A study's command: its settings, ``key=value``, read into a dataclass, and its exit code."""

from __future__ import annotations

import collections.abc
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from filelock import Timeout

from llmdpd_torchrl.utils.errors import ConfigError, UserError

T = TypeVar("T")


def read_options(kind: type[T], settings: Sequence[str]) -> T:
    """Settings of a command line.

    Args:
        kind: a dataclass whose fields are texts, numbers, flags, or sequences of one of these.
        settings: ``key=value``.

    Raises:
        ConfigError: on an unknown key or a value of another type.
    """
    hints = get_type_hints(kind)
    known = sorted(field.name for field in fields(kind))  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{setting}: give key=value, with {', '.join(known)}")
        values[key] = text if hints[key] is str else _value(key, text, hints[key])
    return kind(**values)


def run_command(
    run: Callable[[T], None], kind: type[T], settings: Sequence[str] | None = None
) -> int:
    """Run a command with the settings given, or those of the command line.

    Returns:
        the exit code: 2 after a mistake, or where another process is at it, which is one line.
    """
    try:
        run(read_options(kind, sys.argv[1:] if settings is None else settings))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Timeout as error:
        print(f"error: another process holds {error.lock_file}: wait for it", file=sys.stderr)
        return 2
    return 0


def _value(key: str, text: str, hint: Any) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}={text}: {key} cannot be read") from None
    if get_origin(hint) is collections.abc.Sequence:
        (element,) = get_args(hint)
        if not isinstance(value, list) or not all(_is(element, one) for one in value):
            raise ConfigError(f"{key} is {value!r}: give a list, such as '{key}=[...]'")
    elif not _is(hint, value):
        wanted = "true or false" if hint is bool else "a number"
        raise ConfigError(f"{key} is {value!r}: give {wanted}")
    return value


def _is(kind: Any, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    wide = int | float if kind is float else kind
    return isinstance(value, wide) and not isinstance(value, bool)
