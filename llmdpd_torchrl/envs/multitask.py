"""Many simulators of many tasks as one environment, so that one policy call serves all of them."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from llmdpd_torchrl.envs.base import SimulatorEnv
from llmdpd_torchrl.utils.errors import first_line

#: Idle simulators by task.
SimulatorPool: TypeAlias = "defaultdict[str, list[SimulatorEnv]]"


class SimulatorError(RuntimeError):
    """No simulator of an environment could be made."""


class MultiTaskEnv(EnvBase):
    """N sub-environments in one process, each with an episode of its own; see :meth:`assign`.

    TorchRL's ``SerialEnv`` runs N fixed environments and pays its bookkeeping, as much time as
    Meta-World's simulation takes, for each of them at every step; here it is paid once for all. A
    sub-environment changes its task from episode to episode, and simulators are reused.

    A simulator that raises or cannot be made, and an action, observation or reward that is not
    finite, truncate the episode of their sub-environment: :attr:`errors` has the reason. The others
    go on.

    Args:
        make: makes the simulator of a task, by the task's name. All tasks have the same
            observations and actions.
        tasks: of the first episodes, one for each sub-environment.
        pool: simulators by task that are used before others are made; :meth:`close` returns them to
            it, with those that were made. Default: none, and all are closed.
        device: of the tensors; the simulators compute in NumPy.

    Keys: ``observation`` [N, O] and ``action`` [N, A] float32, ``task_id`` [N, 1] int64,
    ``success`` [N, 1] bool (false where the task has none), and under ``"next"`` ``reward``
    [N, 1], ``terminated``, ``truncated``, ``done`` [N, 1] bool. Resets and steps may be partial, by
    ``_reset`` and ``_step`` [N]; sub-environments that are not stepped keep their state, with a
    reward of 0.

    Attributes:
        task_names: the task of each sub-environment.
        simulators: the simulator of each sub-environment, ``None`` if it could not be made.
        errors: by sub-environment, why its episode crashed, or ``None``.
        simulator_seconds: time spent inside of simulators so far.

    Raises:
        SimulatorError: if no simulator could be made.

    Examples:
        >>> from llmdpd_torchrl.envs import MetaWorldEnv
        >>> make = lambda task: MetaWorldEnv(task, num_goals=3, max_steps=5)
        >>> env = MultiTaskEnv(make, ["reach-v3", "push-v3"])
        >>> env.assign(1, "sweep-v3", 2)
        >>> rollout = env.rollout(9, break_when_any_done=False)
        >>> rollout["next", "truncated"].sum().item(), env.task_names
        (2, ['reach-v3', 'sweep-v3'])
        >>> env.close()
    """

    batch_locked = True

    def __init__(
        self,
        make: Callable[[str], SimulatorEnv],
        tasks: list[str],
        *,
        pool: SimulatorPool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        size = len(tasks)
        super().__init__(device=device, batch_size=torch.Size([size]))
        self.is_closed = False  # TorchRL's own environments of this kind have nothing to close
        self._make = make
        self._returns_to_pool = pool is not None
        self._idle: SimulatorPool = defaultdict(list) if pool is None else pool
        self.simulator_seconds = 0.0
        self.errors: list[str | None] = [None] * size
        self.task_names = list(tasks)
        self.simulators: list[SimulatorEnv | None] = [None] * size
        for index, task in enumerate(tasks):
            self._replace(index, task)
        made = [simulator for simulator in self.simulators if simulator is not None]
        if not made:
            raise SimulatorError(self.errors[0])
        first = made[0]
        observation_spec = first.observation_spec.clone()
        observation_spec.pop("goal_index", None)  # its number of values differs from task to task
        self.observation_spec = observation_spec.expand(size).to(self.device)
        self.full_action_spec = first.full_action_spec.expand(size).to(self.device)
        self.full_reward_spec = first.full_reward_spec.expand(size).to(self.device)
        self.full_done_spec = first.full_done_spec.expand(size).to(self.device)
        self._observations = np.zeros(self.observation_spec["observation"].shape, np.float32)
        self._task_ids = np.full((size, 1), first.task_id, np.int64)
        self._flags = {
            key: np.zeros((size, 1), bool) for key in ("success", "terminated", "truncated")
        }

    def assign(self, index: int, task: str, episode: int) -> None:
        """Let the next reset of a sub-environment begin episode number ``episode`` of ``task``."""
        if self.task_names[index] != task or self.errors[index] is not None:
            self._replace(index, task)
        simulator = self.simulators[index]
        if simulator is None:
            return
        try:
            simulator.choose_episode(episode)
        except Exception as error:
            self._release(index)
            self.errors[index] = f"there is no such episode: {_line(error)}"

    def _replace(self, index: int, task: str) -> None:
        """Give a sub-environment a simulator of ``task``."""
        self._release(index)
        self.task_names[index], self.errors[index] = task, None
        try:
            idle = self._idle[task]
            self.simulators[index] = idle.pop() if idle else self._make(task)
        except Exception as error:  # simulators raise anything; the episode reports it
            self.errors[index] = f"the simulator could not be made: {_line(error)}"

    def _release(self, index: int) -> None:
        """Take the simulator from a sub-environment: idle from now on, or closed if it crashed."""
        simulator, self.simulators[index] = self.simulators[index], None
        if simulator is not None and self.errors[index] is None:
            self._idle[self.task_names[index]].append(simulator)
        elif simulator is not None:  # its state is unknown
            simulator.close(raise_if_closed=False)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        for index in _indices(mask, len(self.task_names)):
            simulator = self.simulators[index]
            for flags in self._flags.values():
                flags[index] = False
            if simulator is None:  # reported at the first step: a reset must not be done already
                self._observations[index] = 0.0
                continue
            self.errors[index] = None
            self._task_ids[index] = simulator.task_id
            started = time.perf_counter()
            try:
                self._observations[index] = simulator.begin()
            except Exception as error:
                self.errors[index] = f"the simulator failed at reset: {_line(error)}"
                self._observations[index] = 0.0
            self.simulator_seconds += time.perf_counter() - started
        return self._state()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict["action"].numpy(force=True)
        finite = np.isfinite(actions).all(-1)
        rewards = np.zeros((len(self.task_names), 1), np.float32)
        for index in _indices(tensordict.get("_step", None), len(self.task_names)):
            if self.errors[index] is not None:
                self._flags["truncated"][index] = True
                continue
            if not finite[index]:
                self._truncate(index, f"the policy's action is {actions[index].tolist()}")
                continue
            simulator = self.simulators[index]
            assert simulator is not None
            started = time.perf_counter()
            try:
                step = simulator.advance(actions[index])
            except Exception as error:
                self._truncate(index, f"the simulator failed: {_line(error)}")
                continue
            finally:
                self.simulator_seconds += time.perf_counter() - started
            if not (np.isfinite(step.observation).all() and np.isfinite(step.reward)):
                self._truncate(index, "the simulator's observation or reward is not finite")
                continue
            self._observations[index] = step.observation
            rewards[index] = step.reward
            for key, flags in self._flags.items():
                flags[index] = getattr(step, key)
        state = self._state()
        state["reward"] = torch.tensor(rewards, device=self.device)
        return state

    def _truncate(self, index: int, reason: str) -> None:
        """End the episode of a sub-environment that crashed."""
        self.errors[index] = reason
        self._flags["truncated"][index] = True
        self._flags["success"][index] = False

    def _state(self) -> TensorDict:
        flags = {key: torch.tensor(value) for key, value in self._flags.items()}
        if "success" not in self.observation_spec.keys():  # noqa: SIM118
            del flags["success"]
        flags["done"] = flags["terminated"] | flags["truncated"]
        return TensorDict(
            {
                "observation": torch.tensor(self._observations),
                "task_id": torch.tensor(self._task_ids),
                **flags,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        for simulator in self.simulators:
            if simulator is not None:
                simulator.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close all simulators, or return them to the pool."""
        if not self.is_closed:
            for index in range(len(self.task_names)):
                self._release(index)
            if not self._returns_to_pool:
                for simulator in itertools.chain.from_iterable(self._idle.values()):
                    simulator.close(raise_if_closed=False)
        super().close(raise_if_closed=raise_if_closed)


def _indices(mask: torch.Tensor | None, size: int) -> range | list[int]:
    return range(size) if mask is None else mask.reshape(-1).nonzero().squeeze(-1).tolist()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
