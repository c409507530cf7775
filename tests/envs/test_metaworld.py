import pickle

import numpy as np
import pytest
import torch
from torchrl.envs import SerialEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv, make_simulator, reset_simulator, sample_goals
from llmdpd_torchrl.envs.metaworld import goal_seed
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("push-v3", num_goals=3, max_steps=8)
    yield env
    env.close()


@pytest.mark.parametrize("hide_goal", [False, True])
def test_specs(hide_goal):
    env = MetaWorldEnv("door-open-v3", num_goals=2, hide_goal=hide_goal)
    check_env_specs(env)
    rollout = env.rollout(3)
    assert rollout["observation"].dtype == torch.float32
    assert rollout["next", "success"].dtype == torch.bool
    assert (rollout["observation"][:, 36:39] == 0).all().item() is hide_goal
    env.close()


def test_specs_of_a_serial_env():
    env = SerialEnv(2, [lambda: MetaWorldEnv("reach-v3", num_goals=2)] * 2)
    check_env_specs(env)
    env.close()


def test_the_observation_is_the_simulators(env):
    env.choose_episode(1)
    state = env.reset()
    simulator = make_simulator("push-v3")
    expected = reset_simulator(simulator, goal=env.goals[1])
    np.testing.assert_allclose(state["observation"].numpy(), expected, rtol=1e-6)
    action = np.array([0.3, -0.5, 0.1, 1.0], dtype=np.float32)
    step = env.step(state.set("action", torch.from_numpy(action)))["next"]
    observation, reward, *_ = simulator.step(action)
    np.testing.assert_allclose(step["observation"].numpy(), observation, rtol=1e-6)
    assert step["reward"].item() == pytest.approx(reward, rel=1e-6)
    simulator.close()


def test_time_truncates_and_never_terminates(env):
    rollout = env.rollout(20)
    assert len(rollout) == 8
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [False] * 7 + [True]
    assert not rollout["next", "terminated"].any()


def test_success_truncates_when_asked_to():
    env = MetaWorldEnv("reach-v3", num_goals=1, stop_on_success=True)
    state = env.reset()
    for _ in range(200):
        observation = state["observation"]
        action = torch.zeros(4)
        action[:3] = 10 * (observation[36:39] - observation[:3])
        step = env.step(state.set("action", action.clamp(-1, 1)))["next"]
        if step["done"]:
            break
        state = step
    assert step["success"].item()
    assert step["truncated"].item()
    env.close()


def test_resets_go_through_the_goals_in_turn(env):
    env.set_seed(0)
    assert [env.reset()["goal_index"].item() for _ in range(4)] == [0, 1, 2, 0]
    env.choose_episode(2)
    assert env.reset()["goal_index"].item() == 2
    with pytest.raises(IndexError, match="has 3 goals, not number 3"):
        env.choose_episode(3)


def test_a_rollout_repeats(env):
    def run():
        torch.manual_seed(3)
        env.set_seed(0)
        return env.rollout(8)

    first, second = run(), run()
    assert (first == second).all()


def test_evaluation_goals_are_fixed_and_differ_from_collections():
    goals = np.stack(sample_goals("push-v3", 5, seed=0))
    sample_goals.cache_clear()
    np.testing.assert_array_equal(goals, np.stack(sample_goals("push-v3", 5, seed=0)))
    others = np.stack(sample_goals("push-v3", 5, seed=0, purpose="collection"))
    distance = np.abs(goals[:, None] - others[None]).max(-1)
    assert distance.min() > 1e-4
    seeds = {
        goal_seed(0, "push-v3", index, purpose)
        for index in range(5)
        for purpose in ("collection", "evaluation")
    }
    assert len(seeds) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "nothing-v3"}, "unknown task 'nothing-v3'"),
        ({"task": "reach-v3", "max_steps": 501}, "max_steps is 501"),
        ({"task": "reach-v3", "goals": []}, "list of goals is empty"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MetaWorldEnv(**arguments)


def test_an_environment_can_be_pickled():
    env = MetaWorldEnv("reach-v3", num_goals=2, max_steps=5)
    env.choose_episode(1)
    copied = pickle.loads(pickle.dumps(env))
    assert torch.equal(copied.reset()["observation"], env.reset()["observation"])
    assert env.reset()["observation"][-3:].any()  # the goal is visible in both
    env.close()
    copied.close()
