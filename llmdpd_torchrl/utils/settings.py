"""Settings: dataclasses whose types and ranges are checked, with one line for each mistake."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from typing_extensions import dataclass_transform

from llmdpd_torchrl.utils.errors import ConfigError, UserError

Kind = TypeVar("Kind")
Item = TypeVar("Item")

# Numbers are strict: neither true nor "3" is one.
Flag = Annotated[bool, Field(strict=True)]
Integer = Annotated[int, Field(strict=True)]
Size = Annotated[int, Field(strict=True, ge=1)]
#: Of networks: what is larger is a slip, and would take the machine's memory.
Width = Annotated[int, Field(strict=True, ge=1, le=16384)]
Count = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Many = Annotated[Sequence[Item], AfterValidator(tuple)]
NonEmpty = Annotated[Sequence[Item], Field(min_length=1), AfterValidator(tuple)]


@dataclass_transform(field_specifiers=(dataclasses.field,))
def checked_dataclass(
    group: str = "", *, strict: bool = False, **options: Any
) -> Callable[[type[Kind]], type[Kind]]:
    """Make a class a dataclass that checks the types and ranges of its fields.

    Lists become tuples, and mappings the dataclasses that fields are annotated with.

    Args:
        group: name of the group of settings, for messages.
        strict: whether plain ``int``, ``float`` and ``bool`` are strict as well.
        **options: of ``dataclasses.dataclass``.

    Examples:
        >>> @checked_dataclass("optim", frozen=True)
        ... class Optim:
        ...     batch_size: Size = 256
        >>> Optim(batch_size=8)
        Optim(batch_size=8)
        >>> Optim(batch_size="many")
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.ConfigError: optim.batch_size is 'many': it must be a valid ...
    """
    config = ConfigDict(strict=strict, extra="forbid", allow_inf_nan=False)

    def decorate(kind: type[Kind]) -> type[Kind]:
        made: Any = pydantic.dataclasses.dataclass(config=config, **options)(kind)
        check = made.__init__

        @functools.wraps(check)
        def init(self: Any, *args: Any, **values: Any) -> None:
            try:
                check(self, *args, **values)
            except ValidationError as error:
                lines = dict.fromkeys(_line(one, made, group) for one in error.errors())
                raise ConfigError("\n".join(lines)) from None

        made.__init__ = init
        return made

    return decorate


def check_all(*checks: Callable[[], object]) -> None:
    """Make all checks; what they refuse is one ConfigError with a line each."""
    errors = []
    for check in checks:
        try:
            check()
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(map(str, errors))))


def _dataclasses(hint: Any) -> Iterator[Any]:
    """The dataclasses in an annotation, such as ``dict[str, Kind]``."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses(part)


def _line(mistake: Any, kind: Any, group: str) -> str:
    """The key and value of a mistake that pydantic found, and what it must be."""
    key, (start, *rest) = group, mistake["loc"]
    by_place = dict(enumerate(item.name for item in dataclasses.fields(kind)))
    for part in (by_place.get(start, start), *rest):
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    key = key.removeprefix(".")
    if mistake["type"] == "missing":
        return f"{key} is missing"
    if mistake["type"] == "unexpected_keyword_argument":
        where, _, name = key.rpartition(".")
        for part in mistake["loc"][:-1]:  # fields, keys of mappings, and places in lists
            kind = next(_dataclasses(get_type_hints(kind).get(part)), kind)
        known = [field.name for field in dataclasses.fields(kind)]
        near = difflib.get_close_matches(name, known, n=1) or sorted(known)
        has = f"{where or 'the configuration'} has {', '.join(near)}"
        return f"{key}: there is no such setting; {has}"
    wanted = mistake["msg"].replace("Input should be", "it must be")
    wanted = {
        "is_instance_of": f"it must be a list, such as '{key}=[first,second]'",
        "sequence_str": f"it must be a list, such as '{key}=[first,second]'",
        "too_short": "it must not be empty",
        "string_too_short": "it must not be empty",
    }.get(mistake["type"], wanted)
    return f"{key} is {mistake['input']!r}: {wanted}"
