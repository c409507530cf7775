import os
import signal
import time

import pytest

from llmdpd_torchrl.evaluation import EvaluationSettings, evaluate
from llmdpd_torchrl.evaluation.backends import (
    JobFailed,
    LocalBackend,
    RayBackend,
    make_backend,
)
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError


def count_to(number, fault=None):
    """A job: counts, and fails at two."""
    for value in range(number):
        if value == 2 and fault == "raises":
            raise ValueError("two is too many\nreally")
        if value == 2 and fault == "killed":
            time.sleep(0.2)  # what was counted is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        if value == 2 and fault == "ends":
            os._exit(3)
        yield value


def collect(backend, jobs):
    found = {number: [] for number in range(len(jobs))}
    for number, event in backend.run(count_to, jobs):
        found[number].append(event)
    return found


JOBS = [(3,), (4, "raises"), (0,), (5,)]
EXPECTED = {
    0: [0, 1, 2],
    1: [0, 1, JobFailed("ValueError: two is too many")],
    2: [],
    3: [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_event_comes_and_processes_are_kept(workers):
    backend = LocalBackend(workers)
    assert collect(backend, JOBS) == EXPECTED
    processes = {worker.process.pid for worker in backend._idle}
    assert len(processes) <= workers
    assert collect(backend, JOBS) == EXPECTED
    assert {worker.process.pid for worker in backend._idle} == processes
    backend.close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("killed", "the worker process was killed by SIGKILL"),
        ("ends", "the worker process ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_takes_its_job_alone(fault, reason):
    backend = LocalBackend(1)
    found = collect(backend, [(2,), (4, fault), (3,)])
    assert found == {0: [0, 1], 1: [0, 1, JobFailed(reason)], 2: [0, 1, 2]}
    backend.close()


def test_an_idle_worker_that_was_killed_is_replaced():
    backend = LocalBackend(1)
    assert collect(backend, [(2,)]) == {0: [0, 1]}
    killed = backend._idle[0]
    killed.process.kill()
    killed.process.join()
    assert collect(backend, [(2,), (3,)]) == {0: [0, 1], 1: [0, 1, 2]}
    assert backend._idle[0].process.pid != killed.process.pid
    backend.close()


def test_a_worker_that_dies_within_a_message(monkeypatch):
    backend = LocalBackend(1)
    collect(backend, [(1,)])
    worker = backend._idle[0]

    def torn():
        worker.process.kill()
        raise ConnectionResetError("within a message")

    monkeypatch.setattr(type(worker.connection), "recv", lambda self: torn())
    found = collect(backend, [(2,)])
    assert found == {0: [JobFailed("the worker process was killed by SIGKILL")]}
    backend.close()


def test_who_stops_listening_leaves_no_process_behind():
    backend = LocalBackend(1)
    events = backend.run(count_to, [(10**9,)])
    next(events)
    worker = backend._idle or [w for _, w in events.gi_frame.f_locals["busy"].values()]
    events.close()
    worker[0].process.join(10)
    assert not worker[0].process.is_alive()
    backend.close()


def test_names():
    backend = make_backend("local", 3)
    assert isinstance(backend, LocalBackend)
    assert backend.workers == 3
    for name in ("dask", "local:here", ""):
        with pytest.raises(ConfigError, match="use local, ray"):
            make_backend(name)
    with pytest.raises(ConfigError, match="workers is 0"):
        make_backend("local", 0)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmdpd_torchrl\[ray\]'"):
        make_backend("ray")


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_ray_gives_the_same_as_processes():
    pytest.importorskip("ray")
    backend = RayBackend(workers=2)
    try:
        assert collect(backend, JOBS) == EXPECTED
        found = collect(backend, [(4, "killed"), (3,)])
        assert found[0][:-1] == [0, 1]
        assert "the Ray actor died" in found[0][-1].reason
        assert found[1] == [0, 1, 2]
        config = NetworkConfig(hidden=[8], prompt="none")
        policy = LLMDPDPolicy.from_networks(config, make_networks(config))
        settings = EvaluationSettings(episodes_per_task=3, max_steps=15, lanes=2)
        options = {"settings": settings, "progress": False}
        tasks = ["reach-v3", "push-v3"]
        ray = evaluate(policy, tasks, backend=backend, **options)
        assert ray == evaluate(policy, tasks, workers=2, **options)
        assert all(episode.error is None for episode in ray)
    finally:
        backend.close()


@pytest.mark.ray
def test_no_cluster():
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        RayBackend(address="127.0.0.1:1")
