"""Parts of somebody's own, ``module:name``, and the consent that importing them needs."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Collection
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from llmdpd_torchrl.utils.errors import ConfigError, first_line

GROUPS = {
    "denoiser": "llmdpd_torchrl.denoisers",
    "text encoder": "llmdpd_torchrl.text_encoders",
    "algorithm": "llmdpd_torchrl.algorithms",
}
"""Entry-point groups by kind of part: what a package declares there has a short name."""


def target_of(kind: str, name: str) -> str | None:
    """``module:name`` of a part, ``None`` if ``name`` is none of somebody's own.

    Args:
        kind: one of :data:`GROUPS`.
        name: ``module:name``, or the name of an entry point.

    Examples:
        >>> target_of("denoiser", "my_parts:Wide"), target_of("text encoder", "smollm2")
        ('my_parts:Wide', None)
    """
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    found = entry_points(group=GROUPS[kind], name=name)
    return next((point.value for point in found), None)


def package_of(kind: str, name: str) -> str | None:
    """The package that a part of somebody's own is imported from; ``None``: it is none."""
    target = target_of(kind, name)
    return None if target is None else target.partition(":")[0].partition(".")[0]


def import_own(module: str, what: str) -> ModuleType:
    """Import a module of somebody's own, which may lie in the current folder.

    Raises:
        ConfigError: that begins with ``what``, if it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module that lies here is found, and hides no other
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module raises anything
        raise ConfigError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def load_part(kind: str, name: str) -> Any:
    """Import a part. Its module may lie in the current folder.

    Raises:
        ConfigError: if there is no such part.
    """
    target = target_of(kind, name)
    if target is None:
        known = sorted(point.name for point in entry_points(group=GROUPS[kind]))
        has = f"; installed are {', '.join(known)}" if known else ""
        raise ConfigError(f"{kind} {name!r}: give module:name of a part of your own{has}")
    module, _, attribute = target.partition(":")
    found = import_own(module, f"{kind} {name!r}")
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise ConfigError(f"{kind} {name!r}: AttributeError: {first_line(error)}") from error


def check_trust(kind: str, name: str, trust: Collection[str], where: str) -> None:
    """Refuse a part that a file names, unless its package is trusted.

    Args:
        kind: of the part.
        name: of the part.
        trust: names of packages that may be imported.
        where: the file.

    Raises:
        ConfigError: naming the file, the part and the package.
    """
    package = package_of(kind, name)
    if package is not None and package not in trust:
        target = target_of(kind, name)
        raise ConfigError(
            f"{where}: its {kind} is {target}, code that is no part of this library: "
            f"it is imported only if you trust it, trust=[{package!r}] or --trust {package}"
        )
