from collections import defaultdict

import numpy as np
import pytest
import torch
from torchrl.envs import SerialEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import GymMujocoEnv, MetaWorldEnv, MultiTaskEnv
from llmdpd_torchrl.envs.multitask import SimulatorError

TASKS = ["reach-v3", "push-v3", "reach-v3"]


def make(task):
    return MetaWorldEnv(task, num_goals=3, max_steps=6)


@pytest.fixture
def env():
    env = MultiTaskEnv(make, TASKS)
    yield env
    env.close()


def test_specs(env):
    check_env_specs(env)
    hopper = MultiTaskEnv(lambda task: GymMujocoEnv(task, max_steps=6), ["Hopper-v4"] * 2)
    check_env_specs(hopper)
    assert "success" not in hopper.observation_spec.keys()  # noqa: SIM118
    hopper.close()


def test_sub_environments_do_what_single_environments_do(env):
    serial = SerialEnv(3, [lambda task=task: make(task) for task in TASKS])
    torch.manual_seed(0)
    actions = torch.rand(6, 3, 4) * 2 - 1
    one, other = env.reset(), serial.reset()
    for action in actions:
        one = env.step(one.set("action", action))["next"]
        other = serial.step(other.set("action", action))["next"]
        for key in ("observation", "task_id", "reward", "success", "truncated", "done"):
            assert torch.equal(one[key], other[key]), key
    assert one["done"].all()
    assert env.simulator_seconds > 0
    serial.close()


def test_a_sub_environment_moves_on_and_the_others_stay(env):
    state = env.reset()
    before = state["observation"].clone()
    env.assign(1, "sweep-v3", 2)
    mask = torch.tensor([[False], [True], [False]])
    after = env.reset(state.set("_reset", mask))
    assert torch.equal(after["observation"][[0, 2]], before[[0, 2]])
    assert env.task_names == ["reach-v3", "sweep-v3", "reach-v3"]
    single = make("sweep-v3")
    single.choose_episode(2)
    assert torch.equal(after["observation"][1], single.reset()["observation"])
    assert after["task_id"][1].item() == single.task_id
    single.close()


def test_simulators_are_used_again(env):
    env.reset()
    push = env.simulators[1]
    env.assign(1, "reach-v3", 0)
    env.assign(0, "push-v3", 1)
    assert env.simulators[0] is push


def test_a_partial_step_leaves_the_others_as_they_are(env):
    state = env.reset()
    actions = torch.ones(3, 4)
    running = torch.tensor([True, False, True])
    step = env.step(state.set("action", actions).set("_step", running))["next"]
    moved = (step["observation"] != state["observation"]).any(-1)
    assert moved.tolist() == [True, False, True]
    assert step["reward"][1].item() == 0


class Faulty(MetaWorldEnv):
    at = "advance"

    def begin(self):
        if self.at == "begin":
            raise OSError("no more memory\nat all")
        return super().begin()

    def advance(self, action):
        if self._steps == 1:
            raise ArithmeticError("diverged")
        return super().advance(action)


@pytest.mark.parametrize("at", ["begin", "advance"])
def test_a_simulator_that_raises_ends_its_episode(at, monkeypatch):
    monkeypatch.setattr(Faulty, "at", at)

    def make_one(task):
        return (Faulty if task == "push-v3" else MetaWorldEnv)(task, num_goals=1)

    env = MultiTaskEnv(make_one, TASKS)
    state = env.reset()
    for _ in range(2):
        state = env.step(state.set("action", torch.zeros(3, 4)))["next"].exclude("reward")
    assert state["truncated"].squeeze(-1).tolist() == [False, True, False]
    error = {"begin": "at reset: OSError: no more memory", "advance": ": ArithmeticError: diverged"}
    assert env.errors[1].endswith(error[at])
    assert env.errors[0] is env.errors[2] is None
    broken = env.simulators[1]
    assert not broken.is_closed
    env.assign(1, "push-v3", 0)  # another simulator
    assert env.simulators[1] is not broken
    assert broken.is_closed
    env.close()


@pytest.mark.parametrize("fault", ["made", "episode"])
def test_a_task_that_cannot_begin_fails_alone(fault):
    def make_one(task):
        if task == "push-v3" and fault == "made":
            raise OSError("no such model")
        return make(task)

    env = MultiTaskEnv(make_one, TASKS)
    env.assign(1, "push-v3", 7)  # there are three
    env.assign(0, "reach-v3", 2)
    state = env.step(env.reset().set("action", torch.zeros(3, 4)))["next"]
    assert state["done"].squeeze(-1).tolist() == [False, True, False]
    reasons = {
        "made": "the simulator could not be made: OSError",
        "episode": "there is no such episode: IndexError",
    }
    assert env.errors[1].startswith(reasons[fault])
    env.assign(1, "sweep-v3", 0)  # the sub-environment goes on with another task
    state = env.reset(state.exclude("reward").set("_reset", state["done"]))
    state = env.step(state.set("action", torch.zeros(3, 4)))["next"]
    assert not state["done"].any()
    assert env.errors == [None] * 3
    env.close()
    with pytest.raises(SimulatorError, match="could not be made: ZeroDivisionError"):
        MultiTaskEnv(lambda task: 1 / 0, TASKS)


@pytest.mark.parametrize("wrong", ["observation", "reward"])
def test_a_diverged_simulator_ends_its_episode(env, wrong):
    state = env.reset()
    first = env.simulators[0]
    advance = first.advance
    value = {"observation": np.full(39, np.nan, np.float32), "reward": float("inf")}[wrong]
    first.advance = lambda action: advance(action)._replace(**{wrong: value})
    step = env.step(state.set("action", torch.zeros(3, 4)))["next"]
    assert "not finite" in env.errors[0]
    assert step["done"].squeeze(-1).tolist() == [True, False, False]
    assert torch.isfinite(step["observation"]).all()
    assert step["reward"][0].item() == 0


def test_simulators_go_back_into_the_pool_or_are_closed():
    pool = defaultdict(list)
    env = MultiTaskEnv(make, TASKS, pool=pool)
    env.reset()
    simulators = list(env.simulators)
    env.close()
    assert {id(s) for s in pool["reach-v3"] + pool["push-v3"]} == {id(s) for s in simulators}
    assert not any(simulator.is_closed for simulator in simulators)
    again = MultiTaskEnv(make, TASKS, pool=pool)
    assert {id(s) for s in again.simulators} == {id(s) for s in simulators}
    again.close()
    alone = MultiTaskEnv(make, TASKS)
    simulators = list(alone.simulators)
    closed = []
    for simulator in simulators:
        simulator.simulator.close = lambda: closed.append(1)
    alone.close()
    assert len(closed) == 3
    assert all(simulator.is_closed for simulator in simulators)


def test_an_action_that_is_not_finite_ends_its_episode(env):
    actions = torch.zeros(3, 4)
    actions[2, 1] = torch.inf
    step = env.step(env.reset().set("action", actions))["next"]
    assert step["done"].squeeze(-1).tolist() == [False, False, True]
    assert env.errors[2] == "the policy's action is [0.0, inf, 0.0, 0.0]"
    assert np.isfinite(step["observation"]).all()
