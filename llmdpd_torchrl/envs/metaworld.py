"""Meta-World's state environments as a TorchRL environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torchrl.data import Categorical

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.envs.simulator import make_simulator, reset_simulator, sample_goals
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["MetaWorldEnv"]


class MetaWorldEnv(SimulatorEnv):
    """One Meta-World task with a fixed list of goals, in float32, with ``success`` in the specs.

    Every reset takes the next goal of the list, or the one chosen by :meth:`choose_episode`. An
    episode is truncated after ``max_steps``, or, with ``stop_on_success``, at its first success;
    Meta-World never terminates.

    Args:
        task: a Meta-World task name such as ``"reach-v3"``.
        goals: placements of object and goal, from
            :func:`~llmdpd_torchrl.envs.simulator.sample_goals`; default: ``num_goals`` evaluation
            goals of ``seed``, which differ from those of every collection.
        num_goals: length of the default list.
        seed: of the default list.
        hide_goal: whether the goal entries of the observation are zero, as in Meta-World's ML
            benchmarks.
        max_steps: 1 to 500.
        stop_on_success: whether the first success truncates the episode: nothing after it counts
            where success at any step is asked for.
        render: width and height in pixels, if the simulator is going to be rendered.
        device: of the tensors.

    Keys: ``observation`` [39] float32, ``action`` [4] float32 in [-1, 1], ``task_id`` and
    ``goal_index`` [1] int64, and under ``"next"`` ``reward`` [1], ``success``, ``terminated``,
    ``truncated``, ``done`` [1] bool.

    Raises:
        ConfigError: if the task is unknown or ``max_steps`` is out of range.

    Examples:
        >>> env = MetaWorldEnv("reach-v3", num_goals=2, max_steps=5)
        >>> rollout = env.rollout(10)
        >>> rollout.shape, rollout["next", "truncated"].squeeze(-1).tolist()
        (torch.Size([5]), [False, False, False, False, True])
        >>> env.close()
    """

    def __init__(
        self,
        task: str,
        *,
        goals: Sequence[NDArray[np.float64]] | None = None,
        num_goals: int = 50,
        seed: int = 0,
        hide_goal: bool = False,
        max_steps: int = 500,
        stop_on_success: bool = False,
        render: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not 1 <= max_steps <= 500:
            raise ConfigError(f"max_steps is {max_steps}: Meta-World allows 1 to 500")
        goals = tuple(goals) if goals is not None else sample_goals(task, num_goals, seed)
        if not goals:
            raise ConfigError(f"{task}: the list of goals is empty; give at least one")
        super().__init__(
            make_simulator(task, render=render),
            observation_dim=METAWORLD_OBSERVATION_LAYOUT["size"],
            action_dim=4,
            task_id=METAWORLD_TASKS.index(task),
            num_tasks=len(METAWORLD_TASKS),
            has_success=True,
            more={"goal_index": Categorical(len(goals), (1,), dtype=torch.int64)},
            device=device,
        )
        self.task = task
        self.goals = goals
        self.hide_goal = hide_goal
        self.max_steps = max_steps
        self.stop_on_success = stop_on_success
        self._next_goal = 0
        self._goal_index = 0
        self._steps = 0
        self._goal_entries = slice(*METAWORLD_OBSERVATION_LAYOUT["fields"]["goal_position"])

    def begin(self) -> NDArray[np.float32]:
        """Start on the next goal and return the first observation [39]."""
        self._goal_index = self._next_goal
        self._next_goal = (self._next_goal + 1) % len(self.goals)
        self._steps = 0
        return self._observation(
            reset_simulator(self._simulator, goal=self.goals[self._goal_index])
        )

    def advance(self, action: NDArray[np.float32]) -> SimulatorStep:
        """Act once, [4]."""
        observation, reward, _, _, info = self._simulator.step(action)
        self._steps += 1
        success = bool(info["success"])
        truncated = self._steps >= self.max_steps or (success and self.stop_on_success)
        return SimulatorStep(
            self._observation(observation), float(reward), False, truncated, success
        )

    def _observation(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        seen = observation.astype(np.float32)
        if self.hide_goal:
            seen[self._goal_entries] = 0.0
        return seen

    def _state(self, observation: NDArray[np.float32], success: bool) -> TensorDict:
        state = super()._state(observation, success)
        return state.set("goal_index", torch.tensor([self._goal_index], device=self.device))

    def _set_seed(self, seed: int | None) -> None:
        """A reset draws nothing, so that the seed only chooses where the list of goals begins."""
        self._next_goal = (seed or 0) % len(self.goals)

    def choose_episode(self, index: int) -> None:
        """Let the next reset take goal number ``index`` of the list."""
        if not 0 <= index < len(self.goals):
            raise IndexError(f"{self.task} has {len(self.goals)} goals, not number {index}")
        self._next_goal = index
