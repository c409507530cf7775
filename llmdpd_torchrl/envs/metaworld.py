"""Meta-World's state environments as a TorchRL environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from llmdpd_torchrl.data.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.envs.simulator import make_simulator, reset_simulator, sample_goals
from llmdpd_torchrl.errors import ConfigError

__all__ = ["MetaWorldEnv"]


class MetaWorldEnv(EnvBase):
    """One Meta-World task with a fixed list of goals, in float32, with ``success`` in the specs.

    Every reset takes the next goal of the list, or the one chosen by :meth:`choose_goal`. An
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

    batch_locked = True

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
        super().__init__(device=device, batch_size=torch.Size([]))
        if not 1 <= max_steps <= 500:
            raise ConfigError(f"max_steps is {max_steps}: Meta-World allows 1 to 500")
        self.task = task
        self.task_id = METAWORLD_TASKS.index(task)
        self.max_steps = max_steps
        self.stop_on_success = stop_on_success
        self.hide_goal = hide_goal
        self.goals = tuple(goals) if goals is not None else sample_goals(task, num_goals, seed)
        if not self.goals:
            raise ConfigError(f"{task}: the list of goals is empty; give at least one")
        self._next_goal = 0
        self._steps = 0
        self._simulator = make_simulator(task, render=render)
        self._goal_entries = slice(*METAWORLD_OBSERVATION_LAYOUT["fields"]["goal_position"])
        size = METAWORLD_OBSERVATION_LAYOUT["size"]
        self.observation_spec = Composite(
            # Unbounded: Meta-World's own box is violated by some of its resets.
            observation=Unbounded((size,), dtype=torch.float32),
            task_id=Categorical(len(METAWORLD_TASKS), (1,), dtype=torch.int64),
            goal_index=Categorical(len(self.goals), (1,), dtype=torch.int64),
            success=Binary(1, (1,), dtype=torch.bool),
            device=self.device,
        )
        self.action_spec = Bounded(-1.0, 1.0, (4,), dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded((1,), dtype=torch.float32, device=self.device)
        self.full_done_spec = Composite(
            {key: Binary(1, (1,), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            device=self.device,
        )
        self._task_tensor = torch.tensor([self.task_id])

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        self._goal_index = torch.tensor([self._next_goal])
        observation = reset_simulator(self._simulator, goal=self.goals[self._next_goal])
        self._next_goal = (self._next_goal + 1) % len(self.goals)
        self._steps = 0
        return self._tensordict(observation, success=False)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].numpy(force=True)
        observation, reward, _, _, info = self._simulator.step(action)
        self._steps += 1
        success = bool(info["success"])
        truncated = self._steps >= self.max_steps or (success and self.stop_on_success)
        result = self._tensordict(observation, success)
        result["reward"] = torch.tensor([reward], dtype=torch.float32)
        result["terminated"] = torch.zeros(1, dtype=torch.bool)
        result["truncated"] = torch.tensor([truncated])
        result["done"] = torch.tensor([truncated])
        return result

    def _tensordict(self, observation: NDArray[np.float64], success: bool) -> TensorDict:
        observation = observation.astype(np.float32)
        if self.hide_goal:
            observation[self._goal_entries] = 0.0
        return TensorDict(
            {
                "observation": torch.from_numpy(observation),
                "task_id": self._task_tensor.clone(),
                "goal_index": self._goal_index.clone(),
                "success": torch.tensor([success]),
            },
            batch_size=[],
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        """A reset draws nothing, so that the seed only chooses where the list of goals begins."""
        self._next_goal = (seed or 0) % len(self.goals)

    def choose_goal(self, index: int) -> None:
        """Let the next reset take goal number ``index`` of the list.

        A method, because a transformed environment hands nothing that is given to ``reset`` on to
        the environment inside.
        """
        if not 0 <= index < len(self.goals):
            raise IndexError(f"{self.task} has {len(self.goals)} goals, not number {index}")
        self._next_goal = index

    @property
    def simulator(self) -> Any:
        """The Meta-World environment inside."""
        return self._simulator

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the simulator."""
        if not self.is_closed:
            self._simulator.close()
        super().close(raise_if_closed=raise_if_closed)
