"""Where groups of episodes run: processes of this machine, or Ray actors of a cluster."""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import logging
import multiprocessing
import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.processes import available_cores, die_with_parent, one_thread_each

__all__ = [
    "Backend",
    "JobFailed",
    "LocalBackend",
    "RayBackend",
    "check_backend",
    "make_backend",
]

Job = tuple[Any, ...]


@dataclass(frozen=True)
class JobFailed:
    """A job that came to no end: its worker died, or its function raised.

    Attributes:
        reason: one line.

    Examples:
        >>> JobFailed("the worker process was killed by SIGKILL").reason[:10]
        'the worker'
    """

    reason: str


class Backend(Protocol):
    """Runs jobs in workers and hands back, as they come, the events that each yields.

    Examples:
        >>> backend: Backend = LocalBackend(workers=1)
        >>> list(backend.run(range, [(2,), (1,)]))
        [(0, 0), (0, 1), (1, 0)]
        >>> backend.close()
    """

    def run(
        self, function: Callable[..., Iterator[Any]], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Any]]:
        """Call ``function(*job)``, a module-level generator, for every job.

        Yields:
            the number of a job and what it yielded, or a :class:`JobFailed` in the end.
        """

    def close(self) -> None:
        """Stop the workers."""


def make_backend(name: str = "local", workers: int | None = None) -> Backend:
    """A backend by its name: ``"local"``, ``"ray"``, or ``"ray:ADDRESS"`` of a cluster.

    Args:
        name: see above.
        workers: default: one per core.

    Raises:
        ConfigError: on another name.
    """
    check_backend(name)
    kind, _, address = name.partition(":")
    if kind == "local":
        return LocalBackend(workers)
    return RayBackend(workers, address=address or None)


def check_backend(name: str, workers: int | None = None) -> None:
    """Refuse, before any work, what :func:`make_backend` would refuse; starts nothing.

    Raises:
        ConfigError: on an unknown backend, one that is not installed, or a wrong number of workers.
    """
    kind, _, address = str(name).partition(":")
    if kind not in ("local", "ray") or (kind == "local" and address):
        raise ConfigError(f"unknown backend {name!r}: use local, ray, or ray:ADDRESS of a cluster")
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("the backend ray needs the package: pip install 'llmdpd_torchrl[ray]'")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: it must be at least 1")


class _WorkerDied(Exception):
    """A worker is gone; says why."""


class _Scheduler(abc.ABC):
    """Gives jobs to workers and listens to them, whatever they are: one line to each busy one."""

    workers: int
    _idle: list[Any]

    @abc.abstractmethod
    def _send(self, payload: bytes) -> tuple[Any, Any]:
        """Give a job to a worker, and return the line to it, and the worker."""

    @abc.abstractmethod
    def _ready(self, lines: Sequence[Any]) -> Sequence[Any]:
        """Wait until there is something on some of the lines, and return these."""

    @abc.abstractmethod
    def _receive(self, line: Any, worker: Any) -> Any:
        """The next event on a line, ``None`` after a job's last; raises :class:`_WorkerDied`."""

    @abc.abstractmethod
    def _kill(self, worker: Any) -> None:
        """End a worker in the middle of its job."""

    def run(
        self, function: Callable[..., Iterator[Any]], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`Backend`."""
        waiting = deque((number, pickle.dumps((function, job))) for number, job in enumerate(jobs))
        busy: dict[Any, tuple[int, Any]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    number, payload = waiting.popleft()
                    line, worker = self._send(payload)
                    busy[line] = number, worker
                for line in self._ready(list(busy)):
                    number, worker = busy[line]
                    try:
                        event = self._receive(line, worker)
                    except _WorkerDied as death:
                        del busy[line]
                        yield number, JobFailed(str(death))
                        continue
                    if event is None:
                        self._idle.append(worker)
                        del busy[line]
                        continue
                    yield number, event
        finally:
            for _, worker in busy.values():  # whoever listened has stopped
                self._kill(worker)


class LocalBackend(_Scheduler):
    """Spawned processes of one thread each. They are kept from one call of :meth:`run` to the next.

    Args:
        workers: number of processes; default: one per available core.

    Raises:
        ConfigError: if it is below 1.

    Examples:
        >>> backend = LocalBackend(workers=1)
        >>> backend.close()
    """

    def __init__(self, workers: int | None = None) -> None:
        check_backend("local", workers)
        self.workers = workers or available_cores()
        self._idle: list[_Worker] = []

    def _send(self, payload: bytes) -> tuple[Connection, _Worker]:
        worker = self._start(payload)
        return worker.connection, worker

    def _ready(self, lines: Sequence[Connection]) -> Sequence[Any]:
        return wait(lines)

    def _receive(self, line: Connection, worker: _Worker) -> Any:
        try:
            return line.recv()
        except (EOFError, OSError):  # the latter if it died within a message
            raise _WorkerDied(worker.end()) from None

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()

    def _start(self, payload: bytes) -> _Worker:
        """Give a job to a worker that is alive."""
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.connection.send_bytes(payload)
                return worker
            except OSError:  # killed since its last job
                worker.end()
        worker = _Worker()
        with contextlib.suppress(OSError):  # dead already: reading from it will tell
            worker.connection.send_bytes(payload)
        return worker

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._idle:
            worker.connection.close()
        for worker in self._idle:
            worker.process.join()
        self._idle = []


class _Worker:
    """A process and the line to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with one_thread_each():
            self.process.start()
        theirs.close()  # or its end would not be seen when the process dies

    def end(self) -> str:
        """Why it is gone."""
        self.process.join()
        code = self.process.exitcode or 0
        with contextlib.suppress(ValueError):
            if code < 0:
                return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"


def _serve(connection: Connection) -> None:
    """A worker's life: a job, its events, ``None``, the next job."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and stops us
    while True:
        try:
            payload = connection.recv_bytes()
        except EOFError:
            return
        for event in _events(payload):
            connection.send(event)
        connection.send(None)


def _events(payload: bytes) -> Iterator[Any]:
    """What a job yields; if it raises, that."""
    try:
        function, job = pickle.loads(payload)
        yield from function(*job)
    except Exception as error:
        yield JobFailed(f"{type(error).__name__}: {first_line(error)}")


class RayBackend(_Scheduler):
    """Ray actors of one core each, on this machine or a cluster: extra ``ray``.

    The cluster's machines need the package, and the same versions of its dependencies.

    Args:
        workers: number of actors, at most one per core of the cluster, which is the default.
        address: of a running cluster, such as ``"auto"`` or ``"10.0.0.1:6379"``. Default: a Ray of
            its own on this machine, if none runs.

    Raises:
        ConfigError: if Ray is not installed or the cluster is not found.

    Examples:
        >>> RayBackend(address="127.0.0.1:9")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        llmdpd_torchrl.utils.errors.ConfigError: no Ray cluster at '127.0.0.1:9'
    """

    def __init__(self, workers: int | None = None, *, address: str | None = None) -> None:
        check_backend("ray", workers)
        import ray

        self._ray: Any = ray
        self._started_here = not ray.is_initialized()
        if self._started_here:
            options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
            if address:
                _check_reachable(address)
                options = {"address": address}
            try:
                ray.init(**options, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray cluster at {address!r}: {first_line(error)}") from None
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.workers = min(workers or cores, cores)  # an actor too many would never start
        # No retries: a job that killed its actor would run again, and its events come twice.
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_RayWorker)
        self._idle: list[Any] = []

    def _send(self, payload: bytes) -> tuple[Any, Any]:
        actor = self._idle.pop() if self._idle else self._actor.remote()
        return actor.run.options(num_returns="streaming").remote(payload), actor

    def _ready(self, lines: Sequence[Any]) -> Sequence[Any]:
        return self._ray.wait(lines, num_returns=1)[0]

    def _receive(self, line: Any, worker: Any) -> Any:
        try:
            return self._ray.get(next(line))
        except self._ray.exceptions.RayError as error:
            raise _WorkerDied(f"the Ray actor died ({type(error).__name__})") from None

    def _kill(self, worker: Any) -> None:
        self._ray.kill(worker)

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle = []
        if self._started_here:
            self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Find out within seconds what Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from None


class _RayWorker:
    def __init__(self) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = "1"

    def run(self, payload: bytes) -> Iterator[Any]:
        yield from _events(payload)
        yield None  # its end: waiting for that of a stream without events would never return
