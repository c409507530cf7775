"""Parts of somebody's own, ``module:name``, and the consent that importing them needs."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Collection
from importlib.metadata import entry_points
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
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module that lies here is found, and hides no other
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module raises anything
        raise ConfigError(
            f"{kind} {name!r}: {type(error).__name__}: {first_line(error)}"
        ) from error


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
    target = target_of(kind, name)
    if target is None:
        return
    package = target.partition(":")[0].partition(".")[0]
    if package not in trust:
        raise ConfigError(
            f"{where}: its {kind} is {target}, code that is no part of this library: it is "
            f"imported only if you trust it, trust=[{package!r}] or --trust {package}"
        )
