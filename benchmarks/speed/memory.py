"""What a process holds in memory, and a limit on it that the kernel enforces."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["AnonymousPeak", "enter_group", "memory_group"]

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
def memory_group(limit: int) -> Iterator[Path | None]:
    """A control group whose processes together hold ``limit`` bytes, page cache included.

    Yields its folder, or ``None`` without the right to make one; it must be empty again at the end.
    """
    group = _make_group(limit)
    try:
        yield group
    finally:
        if group is not None:
            _remove(group)


def enter_group(group: Path) -> bool:
    """Put this process into a group; whether it may."""
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


def _make_group(limit: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        parent = _CGROUPS / ("memory" if controllers else "") / path.lstrip("/")
        group = parent / f"benchmark-{os.getpid()}"
        setting = "memory.limit_in_bytes" if controllers else "memory.max"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / setting).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def _remove(group: Path, seconds: float = 20.0) -> None:
    """Remove a group that was just left; the kernel may call it busy for a while."""
    until = time.monotonic() + seconds
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
