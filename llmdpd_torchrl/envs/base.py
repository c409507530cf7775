"""Base class of the environments: a simulator behind TorchRL's interface."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase


class SimulatorStep(NamedTuple):
    """The result of one simulator step.

    Attributes:
        observation: [O], of any float type.
        reward: of the step.
        terminated: whether the task itself ends, for example by a fall.
        truncated: whether the episode is cut off, for example by the time limit.
        success: whether the task is solved in this step; false for tasks without a criterion.

    Examples:
        >>> step = SimulatorStep(np.zeros(3, np.float32), 1.0, terminated=False, truncated=True)
        >>> step.success
        False
    """

    observation: NDArray[np.float32]
    reward: float
    terminated: bool
    truncated: bool
    success: bool = False


class SimulatorEnv(EnvBase):
    """One simulator as an environment with float32 observations and numbered episodes.

    :meth:`begin` and :meth:`advance` run bare episodes in NumPy, without TorchRL's bookkeeping:
    :class:`~llmdpd_torchrl.envs.MultiTaskEnv` runs many of them as one environment. TorchRL's
    ``reset`` and ``step`` are built on both and cast observations to the spec.

    Args:
        simulator: with Gymnasium's ``reset``, ``step`` and ``close``.
        observation_dim: O.
        action_dim: A; actions are in [-1, 1].
        task_id: the constant value of ``task_id``.
        seed: of the episodes' initial states.
        num_tasks: the number of task ids, if it is known.
        has_success: whether the task has a success criterion.
        more: specs of further observations of a subclass.
        device: of the tensors.

    Keys: ``observation`` [O] and ``action`` [A] float32, ``task_id`` [1] int64, and under
    ``"next"`` ``reward`` [1] float32, ``terminated``, ``truncated``, ``done`` and, with
    ``has_success``, ``success`` [1] bool.

    Examples:
        >>> import gymnasium
        >>> class Pendulum(SimulatorEnv):
        ...     def begin(self):
        ...         return self.reset_simulator()
        ...     def advance(self, action):
        ...         observation, reward, *ends, _ = self.simulator.step(2 * action)
        ...         return SimulatorStep(observation, float(reward), *ends)
        >>> simulator = gymnasium.make("Pendulum-v1")
        >>> env = Pendulum(simulator, observation_dim=3, action_dim=1, task_id=0)
        >>> env.choose_episode(4)
        >>> env.rollout(5)["observation"].shape
        torch.Size([5, 3])
    """

    batch_locked = True

    def __init__(
        self,
        simulator: Any,
        *,
        observation_dim: int,
        action_dim: int,
        task_id: int,
        seed: int = 0,
        num_tasks: int | None = None,
        has_success: bool = False,
        more: Mapping[str, TensorSpec] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([]))
        self.is_closed = False  # TorchRL's own environments of this kind have nothing to close
        self.simulator = simulator
        self._seed = seed
        self._seed_of_next_reset: int | None = seed
        self.task_id = task_id
        self.has_success = has_success
        task = Categorical(num_tasks, (1,)) if num_tasks else Unbounded((1,), dtype=torch.int64)
        # Unbounded, because some of Meta-World's resets violate its own bounds.
        state = Unbounded((observation_dim,), dtype=torch.float32)
        observations: dict[str, TensorSpec] = {"observation": state, "task_id": task}
        if has_success:
            observations["success"] = Binary(1, (1,), dtype=torch.bool)
        observations |= more or {}
        self.observation_spec = Composite(observations, device=self.device)
        self.action_spec = Bounded(
            -1.0, 1.0, (action_dim,), dtype=torch.float32, device=self.device
        )
        self.reward_spec = Unbounded((1,), dtype=torch.float32, device=self.device)
        self.full_done_spec = Composite(
            {key: Binary(1, (1,), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            device=self.device,
        )

    @abc.abstractmethod
    def begin(self) -> NDArray[np.float32]:
        """Start the next episode and return its first observation [O]."""

    @abc.abstractmethod
    def advance(self, action: NDArray[np.float32]) -> SimulatorStep:
        """Act once, [A]."""

    def reset_simulator(self) -> Any:
        """The first observation of the simulator's next episode, for :meth:`begin`."""
        seed, self._seed_of_next_reset = self._seed_of_next_reset, None
        return self.simulator.reset(seed=seed)[0]

    def choose_episode(self, index: int) -> None:
        """Let the next reset begin episode number ``index`` of the seed.

        By default that is the simulator's of a seed that depends on both alone. A method, because a
        transformed environment does not pass arguments of ``reset`` on to its base environment.
        """
        entropy = np.random.SeedSequence((self._seed, index))
        self._seed_of_next_reset = int(entropy.generate_state(1, np.uint32)[0])

    def _set_seed(self, seed: int | None) -> None:
        self._seed_of_next_reset = seed
        self._seed = seed or 0

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return self._state(self.begin(), success=False)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = self.advance(tensordict["action"].numpy(force=True))
        result = self._state(step.observation, step.success)
        result["reward"] = torch.tensor([step.reward], dtype=torch.float32)
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        result["terminated"] = torch.tensor([terminated])
        result["truncated"] = torch.tensor([truncated])
        result["done"] = torch.tensor([terminated or truncated])
        return result

    def _state(self, observation: NDArray[np.float32], success: bool) -> TensorDict:
        state = {
            "observation": torch.as_tensor(observation, dtype=torch.float32),
            "task_id": torch.tensor([self.task_id]),
        }
        if self.has_success:
            state["success"] = torch.tensor([bool(success)])
        return TensorDict(state, batch_size=[], device=self.device)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the simulator."""
        if not self.is_closed:
            self.simulator.close()
        super().close(raise_if_closed=raise_if_closed)
