"""What is looked at in an environment, each fault in an environment that has it."""

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import GymWrapper

from llmdpd_torchrl.envs.checks import check_environment


class Small(gymnasium.Env):
    """Terminates after five steps."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    reward, length = 1.0, 5

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == self.length
        return np.full(2, self.steps, np.float32), self.reward, ends, False, {}


def faults(env, **options):
    """Name and text of what is wrong."""
    found = check_environment(GymWrapper(env), **options)
    return {finding.name: finding.text for finding in found if finding.is_fault}


def changed(**changes):
    return type("Changed", (Small,), changes)()


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    faults(changed(), steps=9)
    assert torch.equal(torch.rand(2), expected)


def test_what_is_right_has_no_fault():
    assert faults(changed(), steps=9) == {}


@pytest.mark.parametrize(
    ("changes", "options", "name", "says"),
    [
        ({"reward": float("nan")}, {}, "reward", "not finite"),
        ({"length": 10**6}, {"steps": 9}, "end", "no time limit"),
        ({}, {"time_limit": 5}, "end", "must truncate"),
        ({"action_space": gymnasium.spaces.Discrete(3)}, {}, "action", "vector of real numbers"),
        ({"action_space": gymnasium.spaces.Box(0, 1, (1,), np.float32)}, {}, "action", "[0, 1]"),
        (
            {"observation_space": gymnasium.spaces.Box(-9, 9, (3,), np.float32)},
            {},
            "specs",
            "not what it declares",
        ),
    ],
)
def test_each_fault_is_named(changes, options, name, says):
    found = faults(changed(**changes), **options)
    assert says in found[name]
    assert "\n" not in found[name]


def test_an_environment_that_does_not_follow_its_seed():
    generator = np.random.default_rng(0)

    def step(self, action):
        return generator.random(2, np.float32), 1.0, False, False, {}

    assert "differ" in faults(changed(step=step), steps=9)["determinism"]


def test_an_environment_that_raises():
    def step(self, action):
        raise ValueError("no such body")

    assert "ValueError: no such body" in faults(changed(step=step))["episodes"]
