"""Any Gymnasium environment: scaling, names, success, numbered episodes, and refusals."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, corners
from llmdpd_torchrl.utils.errors import UserError


class Reacher(gymnasium.Env):
    """A hand that moves by its action, with a dictionary of vectors; ``shape`` of an image."""

    def __init__(self, shape=(2,), bounds=2.0, kind="box"):
        parts = {
            "goal": spaces.Box(-1, 1, (1,)),
            "hand": spaces.Box(-1, 1, shape, dtype=np.float64),
        }
        self.observation_space = spaces.Dict(parts) if kind == "box" else spaces.Discrete(3)
        self.action_space = spaces.Box(-bounds, bounds, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hand = self.np_random.uniform(-1, 1, 2)
        return self._state(), {}

    def step(self, action):
        self.hand = self.hand + action
        return self._state(), float(action.sum()), bool(self.hand[0] > 3), False, {}

    def _state(self):
        return {"goal": np.zeros(1, np.float32), "hand": self.hand}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("test/Reacher-v0", entry_point=Reacher, max_episode_steps=6)
    gymnasium.register("test/Endless-v0", entry_point=Reacher)
    yield
    for name in ("test/Reacher-v0", "test/Endless-v0"):
        del gymnasium.registry[name]


def test_it_is_an_environment_of_torchrl():
    check_env_specs(GymnasiumEnv("test/Reacher-v0", success=SuccessRule(min_reward=3.0)))


def test_actions_are_scaled_and_observations_named_in_order():
    env = GymnasiumEnv("test/Reacher-v0")
    assert env.fields == {"goal": (0, 1), "hand": (1, 3)}
    first = env.reset()["observation"]
    step = env.step(env.reset().set("action", torch.tensor([1.0, -0.5])))["next"]
    assert first.shape == (3,)
    assert step["reward"].item() == pytest.approx(2.0 - 1.0)


def test_an_episode_is_known_by_its_number():
    first, second = (GymnasiumEnv("test/Reacher-v0", seed=4) for _ in range(2))
    first.rollout(3)
    starts = []
    for env in (first, second):
        env.choose_episode(7)
        starts.append(env.reset()["observation"])
    assert torch.equal(*starts)
    first.choose_episode(8)
    assert not torch.equal(first.reset()["observation"], starts[0])


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        ({"min_reward": 3.9}, 0),
        ({"min_return": 7.9}, 2),  # at the end of the episode
        ({"terminated": True}, 2),
    ],
)
def test_rules_of_success(rule, step):
    env = GymnasiumEnv("test/Reacher-v0", success=SuccessRule(**rule), seed=1)
    env.simulator.reset(seed=1)
    state = env.reset()
    env.simulator.unwrapped.hand = np.array([-2.9, 0.0])
    for number in range(step + 1):
        state = env.step(state.set("action", torch.ones(2)))["next"]
        assert state["success"].item() == (number == step)
    assert state["done"].item()


def test_success_need_not_end_an_episode():
    rule = SuccessRule(min_reward=-100.0)
    options = {"bounds": 0.1}
    env = GymnasiumEnv("test/Reacher-v0", options=options, success=rule, stop_on_success=False)
    assert env.rollout(20).shape == (6,)


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("test/Nothing-v0", {}, "import the module that registers it"),
        ("CartPole-v1", {}, "they must be a vector (Box)"),
        ("test/Endless-v0", {}, "nothing ends its episodes in time: give max_steps"),
        ("test/Reacher-v0", {"bounds": np.inf}, "no finite bounds"),
        ("test/Reacher-v0", {"shape": (8, 8, 3)}, "observations are images [8, 8, 3]"),
        ("test/Reacher-v0", {"kind": "discrete"}, "observations are Discrete"),
        ("test/Reacher-v0", {"colour": 1}, "it cannot be made: TypeError"),
    ],
)
def test_what_does_not_fit_is_one_line(task, options, says):
    with pytest.raises(UserError) as raised:
        GymnasiumEnv(task, options=options)
    assert says in str(raised.value)
    assert task in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_time_limit_of_ones_own():
    assert GymnasiumEnv("test/Endless-v0", options={"bounds": 0.1}, max_steps=4).rollout(
        9
    ).shape == (4,)


def test_a_class_that_nobody_registered():
    env = GymnasiumEnv(Reacher, options={"bounds": 0.1}, max_steps=4)
    assert env.rollout(9).shape == (4,)
    with pytest.raises(UserError, match="Reacher: nothing ends its episodes in time"):
        GymnasiumEnv(Reacher)


def test_a_step_that_lacks_the_entry_is_said():
    env = GymnasiumEnv("test/Reacher-v0", success=SuccessRule(info="is_success"))
    with pytest.raises(UserError, match="a step's info has nothing"):
        env.rollout(2)


@pytest.mark.parametrize("corner", corners.CORNERS)
def test_the_toys_policies_solve_it(corner):
    env = GymnasiumEnv(
        "llmdpd/Corner-v0", options={"corner": corner}, success=SuccessRule(info="is_success")
    )
    act = getattr(corners, f"go_{corner}")
    observation, solved = env.begin(), False
    for _ in range(40):
        step = env.advance(act(observation))
        observation, solved = step.observation, step.success
        if solved:
            break
    assert solved
