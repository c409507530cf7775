"""What a process holds in memory, and a limit on it that the kernel enforces."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["AnonymousPeak", "limit_memory"]

_CGROUPS = Path("/sys/fs/cgroup")


class AnonymousPeak:
    """Samples this process's anonymous memory while it is entered: ``bytes`` is the largest value.

    Pages of mapped files are not anonymous: the kernel takes them away whenever it needs memory.
    """

    def __init__(self, seconds: float = 0.005) -> None:
        self.bytes = 0
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _anonymous())
            if self._done.wait(self._seconds):
                return


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


@contextlib.contextmanager
def limit_memory(limit: int) -> Iterator[bool]:
    """Put this process into a control group that holds ``limit`` bytes, page cache included.

    Yields whether that was possible: it needs Linux and the right to make such a group.
    """
    group = _make_group(limit)
    try:
        yield group is not None
    finally:
        if group is not None:
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
            _remove(group)


def _remove(group: Path, seconds: float = 20.0) -> None:
    """Remove a group that was just left; the kernel calls it busy for a while."""
    until = time.monotonic() + seconds
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _make_group(limit: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        parent = _CGROUPS / ("memory" if controllers else "") / path.lstrip("/")
        group = parent / f"benchmark-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            setting = "memory.limit_in_bytes" if controllers else "memory.max"
            (group / setting).write_text(str(limit))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            group.rmdir()
            continue
        return group
    return None
