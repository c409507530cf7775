"""Workers of collection and evaluation: processes of this machine, or Ray actors."""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import cloudpickle
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import ConfigError, UserError, first_line

Job = tuple[Any, ...]

#: Environment of a process that computes in one thread: more would compete for the cores.
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Exit code of a worker that would start workers itself while it imports the main script.
_WITHOUT_GUARD = 90
#: What a worker sends first, when it has imported the main script.
_READY = b"ready"


@dataclass(frozen=True)
class JobFailed:
    """Last event of a job that did not finish: its worker died, or its function raised an error."""

    reason: str  # one line
    error: Exception | None = field(default=None, compare=False, repr=False)  # of the function
    trace: str = field(default="", compare=False, repr=False)  # of the worker

    def reraise(self) -> NoReturn:
        """Raise the function's exception here, with the worker's traceback as its cause."""
        error = RuntimeError(self.reason) if self.error is None else self.error
        raise error from RuntimeError(f"in a worker process:\n{self.trace}")


class Backend(abc.ABC):
    """Runs jobs in workers: idle ones get a job, busy ones are read, each over its connection.

    Examples:
        >>> backend: Backend = LocalBackend(workers=1)
        >>> list(backend.run(range, [(2,), (1,)]))
        [(0, 0), (0, 1), (1, 0)]
        >>> backend.close()
    """

    def __init__(self, workers: int | None, cores: int) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}: it must be at least 1")
        self.workers = workers or cores
        self._idle: list[Any] = []

    @abc.abstractmethod
    def _send(self, payload: bytes) -> tuple[Any, Any]:
        """Give a job to a worker; returns the connection to it, and the worker."""

    @abc.abstractmethod
    def _ready(self, connections: Sequence[Any]) -> Sequence[Any]:
        """Wait until some of the connections can be read, and return these."""

    @abc.abstractmethod
    def _receive(self, connection: Any, worker: Any) -> bytes | JobFailed:
        """The next message, or that the worker died."""

    @abc.abstractmethod
    def _kill(self, worker: Any) -> None:
        """End a worker in the middle of its job."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop the workers."""

    def run(
        self, function: Callable[..., Iterator[Any]], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Any]]:
        """Call ``function(*job)``, a generator function, for every job.

        Yields the number of a job and an event that it yielded, :class:`JobFailed` if it failed.
        Function, jobs and events are sent with cloudpickle: functions and classes may be defined in
        a notebook or in the main script, which must start workers under
        ``if __name__ == "__main__":``.
        """
        waiting = deque((n, cloudpickle.dumps((function, job))) for n, job in enumerate(jobs))
        busy: dict[Any, tuple[int, Any]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    number, payload = waiting.popleft()
                    connection, worker = self._send(payload)
                    busy[connection] = number, worker
                for connection in self._ready(list(busy)):
                    number, worker = busy[connection]
                    message = self._receive(connection, worker)
                    if isinstance(message, JobFailed):
                        del busy[connection]
                        yield number, message
                        continue
                    if message == _READY:
                        continue
                    event = cloudpickle.loads(message)
                    if event is None:
                        self._idle.append(worker)
                        del busy[connection]
                        continue
                    yield number, event
        finally:
            for _, worker in busy.values():  # the caller has stopped reading
                self._kill(worker)


class LocalBackend(Backend):
    """Spawned processes of one thread each, which are reused from one :meth:`run` to the next."""

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(workers, available_cores())

    @property
    def idle_processes(self) -> list[int | None]:
        """Process ids of the workers that wait for a job."""
        return [worker.process.pid for worker in self._idle]

    def _send(self, payload: bytes) -> tuple[Connection, _Worker]:
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.connection.send_bytes(payload)
                return worker.connection, worker
            except OSError:  # killed since its last job
                worker.end()
        worker = _Worker()
        with contextlib.suppress(OSError):  # dead already: reading from it raises
            worker.connection.send_bytes(payload)
        return worker.connection, worker

    def _ready(self, connections: Sequence[Connection]) -> Sequence[Any]:
        return wait(connections)

    def _receive(self, connection: Connection, worker: _Worker) -> bytes | JobFailed:
        with contextlib.suppress(EOFError, OSError):  # the latter if it died within a message
            message = connection.recv_bytes()
            worker.is_ready = True
            return message
        return JobFailed(worker.end())

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._idle:
            worker.connection.close()
        for worker in self._idle:
            worker.process.join()
        self._idle = []


class _Worker:
    """A process and the connection to it."""

    def __init__(self) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(_WITHOUT_GUARD)  # we are a worker that imports the main script
        context = multiprocessing.get_context("spawn")
        self.is_ready = False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            # We are a worker of joblib's, whose method the new process would not know.
            multiprocessing.set_start_method("spawn", force=True)
        before = {name: os.environ.get(name) for name in _SINGLE_THREAD}
        os.environ.update(_SINGLE_THREAD)
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()  # otherwise the end of the process would not close the connection

    def end(self) -> str:
        """Wait for the process to end, and return why; raises if it never served: none would."""
        self.process.join()
        code = self.process.exitcode or 0
        with contextlib.suppress(ValueError):
            if code < 0:
                return f"the worker process was killed by {signal.Signals(-code).name}"
        if not self.is_ready:
            why = "" if code == _WITHOUT_GUARD else f" (exit code {code}, see its traceback)"
            raise ConfigError(
                f"the worker processes cannot start{why}: they import the main script, which must "
                'start its work under `if __name__ == "__main__":`'
            )
        return f"the worker process ended with exit code {code}"


def _serve(connection: Connection) -> None:
    """Main function of a worker process: run jobs and send their events until the parent closes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and stops us
    connection.send_bytes(_READY)
    while True:
        try:
            payload = connection.recv_bytes()
        except EOFError:
            return
        for message in _job_messages(payload):
            connection.send_bytes(message)


def _job_messages(payload: bytes) -> Iterator[bytes]:
    """The pickled events of a job, :class:`JobFailed` if it raises, and ``None`` at the end."""
    try:
        function, job = cloudpickle.loads(payload)
        for event in function(*job):
            yield cloudpickle.dumps(event)
    except Exception as error:
        failed = JobFailed(
            f"{type(error).__name__}: {first_line(error)}", error, traceback.format_exc()
        )
        try:
            message = cloudpickle.dumps(failed)
            cloudpickle.loads(message)
        except Exception:  # an exception that cannot be sent
            message = cloudpickle.dumps(JobFailed(failed.reason, RuntimeError(failed.reason)))
        yield message
    yield cloudpickle.dumps(None)


class RayBackend(Backend):
    """Ray actors of one core each, on this machine or a cluster: extra ``ray``.

    The cluster's machines need the package, and the same versions of its dependencies. Its
    ``address`` is such as ``"auto"`` or ``"10.0.0.1:6379"``; the default is a Ray of its own on
    this machine, if none runs.
    """

    def __init__(self, workers: int | None = None, *, address: str | None = None) -> None:
        check_backend("ray")
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
        super().__init__(workers, cores)
        self.workers = min(self.workers, cores)  # an actor too many would never start
        # No retries: a job that killed its actor would run again, and its events come twice.
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_RayWorker)

    def _send(self, payload: bytes) -> tuple[Any, Any]:
        actor = self._idle.pop() if self._idle else self._actor.remote()
        return actor.run.options(num_returns="streaming").remote(payload), actor

    def _ready(self, connections: Sequence[Any]) -> Sequence[Any]:
        return self._ray.wait(connections, num_returns=1)[0]

    def _receive(self, connection: Any, worker: Any) -> bytes | JobFailed:
        try:
            return self._ray.get(next(connection))
        except self._ray.exceptions.RayError as error:
            return JobFailed(f"the Ray actor died ({type(error).__name__})")

    def _kill(self, worker: Any) -> None:
        self._ray.kill(worker)

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle = []
        if self._started_here:
            self._ray.shutdown()


class _RayWorker:
    def __init__(self) -> None:
        os.environ.update(_SINGLE_THREAD)

    def run(self, payload: bytes) -> Iterator[bytes]:
        yield from _job_messages(payload)


def _check_reachable(address: str) -> None:
    """Find out within seconds what Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from None


def make_backend(name: str = "local", workers: int | None = None) -> Backend:
    """A backend by its name: ``"local"``, ``"ray"``, or ``"ray:ADDRESS"`` of a cluster."""
    check_backend(name)
    kind, _, address = name.partition(":")
    if kind == "local":
        return LocalBackend(workers)
    return RayBackend(workers, address=address or None)


def check_backend(name: str) -> None:
    """Refuse an unknown backend, or one that is not installed, before any work; starts nothing."""
    kind, _, address = name.partition(":")
    if kind not in ("local", "ray") or (kind == "local" and address):
        raise ConfigError(f"unknown backend {name!r}: use local, ray, or ray:ADDRESS of a cluster")
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("the backend ray needs the package: pip install 'llmdpd_torchrl[ray]'")


def run_jobs(
    function: Callable[..., Iterator[int]],
    jobs: Sequence[Job],
    *,
    episodes: int,
    description: str,
    workers: int | None = None,
    progress: bool = True,
) -> list[list[int]]:
    """Call ``function(*job)`` for every job in processes, with one bar that counts ``episodes``.

    The function is a generator function that yields the steps of each episode as it ends. Returns
    what each job yielded, in the order of the jobs. An exception of a job is raised as it is.
    """
    yielded: list[list[int]] = [[] for _ in jobs]
    backend = LocalBackend(max(1, min(workers or available_cores(), len(jobs))))
    bar = tqdm(total=episodes, desc=description, unit="episode", disable=not progress)
    started, steps = time.monotonic(), 0
    with contextlib.closing(backend), bar:
        for number, event in backend.run(function, jobs):
            if isinstance(event, JobFailed):
                if event.error is not None:
                    event.reraise()
                raise UserError(
                    f"{event.reason} during {description!r} (out of memory, or killed); run the "
                    "same command again, with fewer workers if memory was short"
                )
            yielded[number].append(event)
            steps += event
            bar.set_postfix_str(f"{steps / (time.monotonic() - started):.0f} steps/s", False)
            bar.update()
    return yielded


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
