import dataclasses
import os
import signal
import time

import pytest

from llmdpd_torchrl.evaluation import EvaluationSettings, MetaWorldSuite, evaluate
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.backends import RayBackend, make_backend
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.processes import JobFailed, LocalBackend


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


@pytest.fixture(scope="module")
def ray_backend():
    pytest.importorskip("ray")
    backend = RayBackend(workers=2)
    yield backend
    backend.close()


def count_to(number, fault=None):
    """A job: counts, and fails at two."""
    for value in range(number):
        if value == 2 and fault == "raises":
            raise ValueError("two is too many\nreally")
        if value == 2 and fault == "killed":
            time.sleep(0.2)  # what was counted is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        yield value


def collect(backend, jobs):
    found = {number: [] for number in range(len(jobs))}
    for number, event in backend.run(count_to, jobs):
        found[number].append(event)
    return found


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_ray_gives_the_same_as_processes(ray_backend):
    assert collect(ray_backend, [(3,), (4, "raises"), (0,), (5,)]) == {
        0: [0, 1, 2],
        1: [0, 1, JobFailed("ValueError: two is too many")],
        2: [],
        3: [0, 1, 2, 3, 4],
    }
    found = collect(ray_backend, [(4, "killed"), (3,)])
    assert found[0][:-1] == [0, 1]
    assert "the Ray actor died" in found[0][-1].reason
    assert found[1] == [0, 1, 2]
    config = NetworkConfig(hidden=[8], prompt="none")
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    settings = EvaluationSettings(episodes_per_task=3, max_steps=15, num_envs=2)

    @dataclasses.dataclass(frozen=True)
    class Suite(MetaWorldSuite):
        """A class that no worker can import, as those of scripts and notebooks."""

    tasks = ["reach-v3", "push-v3"]
    suite = Suite(settings.suite(tasks).goals, max_steps=15)
    options = {"settings": settings, "suite": suite, "progress": False}
    ray = evaluate(policy, tasks, backend=ray_backend, **options)
    assert ray == evaluate(policy, tasks, workers=2, **options)
    assert all(episode.error is None for episode in ray)


@pytest.mark.ray
@pytest.mark.integration
def test_no_cluster():
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        RayBackend(address="127.0.0.1:1")
