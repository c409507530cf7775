"""Episodes of Meta-World's scripted experts, with action noise."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from llmdpd_torchrl.envs.simulator import reset_simulator

__all__ = ["make_expert", "run_expert_episode"]


def make_expert(task: str) -> Any:
    """The scripted policy of ``task``: ``get_action(observation [39]) -> action [4]``."""
    policies: dict[str, Any] = ENV_POLICY_MAP
    return policies[task]()


def run_expert_episode(
    simulator: Any,
    expert: Any,
    *,
    seed: int,
    noise: float,
    max_steps: int,
    steps_after_success: int,
    gain: float = 1.0,
) -> dict[str, NDArray[Any]]:
    """Run one episode: action = clip(gain · clip(expert) + noise · N(0, 1)), clipped to [-1, 1].

    Args:
        simulator: from :func:`~llmdpd_torchrl.envs.simulator.make_simulator`.
        expert: from :func:`make_expert`.
        seed: of the placement of object and goal, and of the noise.
        noise: standard deviation of the action noise, in units of the action range's half width.
        max_steps: the episode is truncated here.
        steps_after_success: how many steps are kept after the first success before the episode is
            truncated: enough to show that the goal is held, without filling the data with waiting.
        gain: of the movement, at most 1; the gripper closes as it does.

    Returns:
        arrays over the T steps of the episode: ``observation`` and ``next_observation`` [T, 39],
        ``action`` [T, 4], ``reward`` [T, 1] (float32), ``success``, ``terminated`` and
        ``truncated`` [T, 1] (bool). Meta-World never terminates: the last step is truncated.
    """
    generator = np.random.default_rng(seed)
    observations = np.empty((max_steps + 1, 39), dtype=np.float32)
    actions = np.empty((max_steps, 4), dtype=np.float32)
    rewards = np.empty((max_steps, 1), dtype=np.float32)
    successes = np.zeros((max_steps, 1), dtype=np.bool_)
    disturbance = generator.standard_normal((max_steps, 4)) * noise

    observation = reset_simulator(simulator, seed=seed)
    observations[0] = observation
    last = max_steps
    steps = 0
    with warnings.catch_warnings():
        # The experts warn that their gains exceed the action range; the clip below is the answer.
        warnings.simplefilter("ignore", UserWarning)
        while steps < last:
            wanted = expert.get_action(observation)
            if gain != 1.0:
                wanted = np.append(gain * np.clip(wanted[:3], -1.0, 1.0), wanted[3])
            actions[steps] = np.clip(wanted + disturbance[steps], -1.0, 1.0)
            observation, reward, _, _, info = simulator.step(actions[steps])
            rewards[steps] = reward
            successes[steps] = bool(info["success"])
            if successes[steps] and last == max_steps:
                last = min(max_steps, steps + 1 + steps_after_success)
            steps += 1
            observations[steps] = observation
    truncated = np.zeros((steps, 1), dtype=np.bool_)
    truncated[-1] = True
    return {
        "observation": observations[:steps].copy(),
        "next_observation": observations[1 : steps + 1].copy(),
        "action": actions[:steps].copy(),
        "reward": rewards[:steps].copy(),
        "success": successes[:steps].copy(),
        "terminated": np.zeros((steps, 1), dtype=np.bool_),
        "truncated": truncated,
    }
