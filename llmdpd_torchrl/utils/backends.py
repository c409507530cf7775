"""Backends by name: worker processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.processes import (
    SINGLE_THREAD,
    Backend,
    LocalBackend,
    WorkerDied,
    job_messages,
)


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

    def _receive(self, connection: Any, worker: Any) -> bytes:
        try:
            return self._ray.get(next(connection))
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"the Ray actor died ({type(error).__name__})") from None

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
        os.environ.update(SINGLE_THREAD)

    def run(self, payload: bytes) -> Iterator[bytes]:
        yield from job_messages(payload)


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
