"""How much memory this machine offers, and whether something fits into it."""

from __future__ import annotations

from pathlib import Path

import psutil

from llmdpd_torchrl.utils.errors import ConfigError


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping: of the machine, and below the container's limit."""
    free = psutil.virtual_memory().available
    limit, used, stat = (cgroup / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        counts = dict(map(str.split, stat.read_text().splitlines())) if stat.is_file() else {}
        # Pages of files are freed by the system when needed.
        pages = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text()) + pages))
    return free


def check_memory(
    bytes_needed: int,
    what: str,
    *,
    available: int | None = None,
    remedy: str = "load fewer tasks or episodes, end other programs, or use a machine with more",
) -> None:
    """Refuse to load what does not fit, before the system kills the process in the middle of it.

    ``bytes_needed`` is the most that is in use while ``what`` is being loaded.
    """
    available = available_memory() if available is None else available
    if bytes_needed > available:
        raise ConfigError(
            f"{what} needs about {bytes_needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB is available: {remedy}"
        )
