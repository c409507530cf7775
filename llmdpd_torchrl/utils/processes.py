"""Independent jobs in worker processes, with one progress bar over what they count."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import UserError

__all__ = [
    "available_cores",
    "count_episode",
    "die_with_parent",
    "one_thread_each",
    "run_jobs",
]

Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int | None,
    episodes: int,
    description: str,
    progress: bool = True,
) -> list[Result]:
    """Call ``function(*job)`` for every job in spawned processes and return the results in order.

    Args:
        function: a module-level function; it calls :func:`count_episode` as it goes.
        jobs: its arguments.
        workers: number of processes; default: one per available core, at most one per job.
        episodes: how many episodes all jobs together count.
        description: what the bar is called.
        progress: whether to show it.

    Raises:
        UserError: if a worker process dies. What an exception in a job raises is raised here.
    """
    context = multiprocessing.get_context("spawn")
    counters = context.Value("q", 0), context.Value("q", 0)
    count = max(1, min(workers or available_cores(), len(jobs)))
    bar = tqdm(total=episodes, desc=description, unit="episode", disable=not progress)
    with bar, ProcessPoolExecutor(count, context, _start_worker, (counters,)) as pool:
        with one_thread_each():
            futures: list[Future[Result]] = [pool.submit(function, *job) for job in jobs]
        pending = set(futures)
        started = time.monotonic()
        try:
            while pending:
                done, pending = wait(pending, timeout=0.25, return_when=FIRST_COMPLETED)
                rate = counters[1].value / (time.monotonic() - started)
                bar.set_postfix_str(f"{rate:.0f} steps/s", refresh=False)
                bar.update(counters[0].value - bar.n)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a worker process died during {description!r} (out of memory, or killed); run the "
                "same command again, with fewer workers if memory was short"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def count_episode(steps: int) -> None:
    """Tell the bar of the parent process that one more episode, of ``steps`` steps, is done."""
    if _counters is not None:
        for counter, amount in zip(_counters, (1, steps), strict=True):
            with counter.get_lock():
                counter.value += amount


_counters: Any = None


def _start_worker(counters: Any) -> None:
    """Remember the shared counters."""
    global _counters
    _counters = counters
    die_with_parent()


def die_with_parent() -> None:
    """In a worker process: end when the parent does, instead of waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes started inside use one thread each: more would fight over the cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
