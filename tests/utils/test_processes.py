import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from llmdpd_torchrl.evaluation import EvaluationSettings, MetaWorldSuite, evaluate
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.processes import (
    JobFailed,
    LocalBackend,
    RayBackend,
    make_backend,
    run_jobs,
)

# --- the pool --------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def backend():
    """One worker, which the tests of this file share."""
    backend = LocalBackend(1)
    yield backend
    backend.close()


def test_every_event_comes_and_processes_are_reused(backend):
    assert collect(backend, JOBS) == EXPECTED
    processes = backend.idle_processes
    assert len(processes) == 1
    assert collect(backend, JOBS) == EXPECTED
    assert backend.idle_processes == processes


@pytest.mark.integration
def test_several_workers():
    backend = LocalBackend(3)
    assert collect(backend, JOBS) == EXPECTED
    assert 1 <= len(backend.idle_processes) <= 3
    processes = set(backend.idle_processes)
    assert collect(backend, JOBS) == EXPECTED
    assert set(backend.idle_processes) == processes
    backend.close()


def test_what_is_sent_may_be_defined_in_a_function(backend):
    """As classes of notebooks are, which no worker can import."""

    class Pair:
        def __init__(self, one, other):
            self.values = one, other

    def pairs(count, kind):
        for number in range(count):
            yield kind(number, number + 1)

    events = [event for _, event in backend.run(pairs, [(2, Pair)])]
    assert [event.values for event in events] == [(0, 1), (1, 2)]
    assert all(isinstance(event, Pair) for event in events)


def test_the_exception_of_a_job_can_be_raised_here(backend):
    (failed,) = (e for _, e in backend.run(count_to, [(3, "raises")]) if isinstance(e, JobFailed))
    with pytest.raises(ValueError, match="two is too many") as error:
        failed.reraise()
    assert "in count_to" in str(error.value.__cause__)

    class Unsendable(Exception):
        def __reduce__(self):
            raise TypeError("no")

    def fail():
        yield 0
        raise Unsendable("as it is")

    events = [event for _, event in backend.run(fail, [()])]
    assert events == [0, JobFailed("Unsendable: as it is")]
    with pytest.raises(RuntimeError, match="Unsendable: as it is"):
        events[1].reraise()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("killed", "the worker process was killed by SIGKILL"),
        ("ends", "the worker process ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_takes_its_job_alone(backend, fault, reason):
    found = collect(backend, [(2,), (4, fault), (3,)])
    assert found == {0: [0, 1], 1: [0, 1, JobFailed(reason)], 2: [0, 1, 2]}


@pytest.mark.integration
def test_an_idle_worker_that_was_killed_is_replaced(backend):
    assert collect(backend, [(2,)]) == {0: [0, 1]}
    (before,) = backend.idle_processes
    killed = psutil.Process(before)
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    assert collect(backend, [(2,), (3,)]) == {0: [0, 1], 1: [0, 1, 2]}
    assert backend.idle_processes != [before]


@pytest.mark.integration
def test_a_worker_that_dies_within_a_message():
    """A reader sees the beginning of a message, and then the end of the connection."""

    def write_half_a_message():
        connection = next(
            value
            for frame in sys._current_frames().values()
            for value in _locals_of(frame, "connection")
        )
        yield "first"
        os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def _locals_of(frame, name):
        while frame is not None:
            if name in frame.f_locals:
                yield frame.f_locals[name]
            frame = frame.f_back

    backend = LocalBackend(1)
    events = [event for _, event in backend.run(write_half_a_message, [()])]
    assert events == ["first", JobFailed("the worker process was killed by SIGKILL")]
    backend.close()


@pytest.mark.integration
def test_a_caller_that_stops_reading_leaves_no_process_behind():
    backend = LocalBackend(1)
    before = {child.pid for child in psutil.Process().children()}
    events = backend.run(count_to, [(10**9,)])
    next(events)
    (worker,) = (c for c in psutil.Process().children() if c.pid not in before)
    events.close()
    worker.wait(10)
    backend.close()


def test_number_of_workers():
    with pytest.raises(ConfigError, match="workers is 0"):
        LocalBackend(0)


def script_of(call):
    return (
        "from llmdpd_torchrl.utils.processes import LocalBackend, run_jobs\n"
        "def job(count):\n"
        "    yield from range(count)\n"
        f"{call}\n"
    )


@pytest.mark.integration
@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_without_guard_is_told_to_have_one(tmp_path, guarded):
    call = "print('found', run_jobs(job, [(3,), (2,)], episodes=5, description='x', workers=2))"
    script = tmp_path / "script.py"
    script.write_text(script_of(f"if __name__ == '__main__':\n    {call}" if guarded else call))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if guarded:
        assert done.stdout == "found [[0, 1, 2], [0, 1]]\n", done.stderr
        return
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "leaked" not in done.stderr
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


# --- backends by name -------------------------------------------------------------------------


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


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_ray_gives_the_same_as_processes(ray_backend):
    assert collect(ray_backend, JOBS) == EXPECTED
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


# --- jobs with a bar -------------------------------------------------------------------------


@pytest.mark.integration
def test_jobs_come_back_in_order():
    jobs = [(3,), (0,), (2,)]
    found = run_jobs(count_to, jobs, episodes=5, description="count", workers=2, progress=False)
    assert found == [[0, 1, 2], [], [0, 1]]


@pytest.mark.integration
def test_jobs_that_fail():
    options = {"episodes": 4, "description": "count", "workers": 1, "progress": False}
    with pytest.raises(ValueError, match="two is too many"):
        run_jobs(count_to, [(4, "raises")], **options)
    with pytest.raises(UserError, match=r"killed by SIGKILL during 'count'.*the same command"):
        run_jobs(count_to, [(4, "killed")], **options)
