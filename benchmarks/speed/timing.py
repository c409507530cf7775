"""Fair timing of several ways to do one thing: alternating, repeated, on one clock."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "alternate",
    "count_flops",
    "gemm_peak",
    "keep_freed_memory",
    "speedup",
    "spread",
    "threads",
]


def alternate(
    sides: Mapping[str, Callable[[], Any]], *, repeats: int, slice_seconds: float = 0.3
) -> dict[str, list[float]]:
    """Seconds a call of every side, ``repeats`` measurements of each.

    The sides take turns, each for about ``slice_seconds``, so that whatever else the machine does
    meets all of them alike, and the ratio of two neighbouring slices can be trusted more than
    either time.
    """
    calls = {}
    for name, side in sides.items():
        side()  # whatever happens only once: allocations, lazy state, compilation
        side()
        calls[name] = max(1, round(slice_seconds / _seconds(side, 1)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(_seconds(side, calls[name]))
    return times


def _seconds(side: Callable[[], Any], calls: int) -> float:
    _synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        side()
    _synchronize()
    return (time.perf_counter() - started) / calls


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speedup(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the repeats of how often ``fast`` fits into ``slow``."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def spread(times: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest seconds a call."""
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the system, for all that this process measures.

    Tensors of some hundred kilobytes lie just where it does, so that every update would fault its
    memory in again: half of the time of a small activation, and much of the measurements' noise.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        for parameter in (trim_threshold, mmap_threshold):
            if hasattr(libc, "mallopt"):  # other C libraries have no such function
                libc.mallopt(parameter, 1 << 30)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use ``count`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _NoModules:
    """Placeholder for the counter of modules, which cannot follow a LossModule."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self) -> None:
        pass


def count_flops(function: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products in one call."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        function()
    return counter.get_total_flops()


def gemm_peak(
    device: torch.device | str = "cpu",
    *,
    sizes: Sequence[int] = (256, 512, 1024, 2048),
    repeats: int = 5,
) -> float:
    """The best FLOP/s of a square float32 matrix product on as many threads as are set."""
    best = 0.0
    for size in sizes:
        left, right = torch.randn(2, size, size, device=device)
        product = torch.empty_like(left)

        def multiply(
            left: torch.Tensor = left, right: torch.Tensor = right, product: torch.Tensor = product
        ) -> None:
            torch.mm(left, right, out=product)

        times = alternate({"gemm": multiply}, repeats=repeats, slice_seconds=0.05)["gemm"]
        best = max(best, 2 * size**3 / min(times))
    return best
