"""Whether something will fit into this machine's memory, asked before it is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["available_memory", "check_memory"]

#: Of both versions of control groups: the limit, what is used, and what of that are files' pages,
#: which make way.
_CGROUPS = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can still be used without swapping; ``None`` if the system does not tell.

    The least of what Linux calls available and what the container's limit leaves.

    Args:
        root: below which ``proc`` and ``sys`` are.
    """
    found = []
    meminfo = root / "proc" / "meminfo"
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit_name, used_name, pages in _CGROUPS:
        limit, used = (root / "sys/fs/cgroup" / name for name in (limit_name, used_name))
        if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
            file = used.with_name("memory.stat")
            stat = dict(map(str.split, file.read_text().splitlines())) if file.is_file() else {}
            makes_way = sum(int(stat.get(name, 0)) for name in pages)
            found.append(max(0, int(limit.read_text()) - int(used.read_text()) + makes_way))
    return min(found) if found else None


def check_memory(
    bytes_needed: int,
    what: str,
    *,
    available: int | None = None,
    remedy: str = "load fewer tasks or episodes, end other programs, or use a machine with more",
) -> None:
    """Refuse to load what does not fit, before the system kills the process in the middle of it.

    Args:
        bytes_needed: at the most, while it is being loaded.
        what: it is called in the message.
        available: bytes; default: :func:`available_memory`. If the system does not tell, nothing is
            refused.
        remedy: the end of the message.

    Raises:
        ConfigError: if it is more than is available.

    Examples:
        >>> check_memory(1000, "the dataset")
        >>> check_memory(3 * 2**30, "the dataset", available=2**30)
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.ConfigError: ... needs about 3.0 GiB of memory, 1.0 GiB is ...
    """
    available = available_memory() if available is None else available
    if available is not None and bytes_needed > available:
        raise ConfigError(
            f"{what} needs about {bytes_needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB is available: {remedy}"
        )
