"""Many simulators of many tasks as one environment, so that a policy is called once for all."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite, TensorSpec
from torchrl.envs import EnvBase

from llmdpd_torchrl.envs.base import SimulatorEnv
from llmdpd_torchrl.utils.errors import first_line

__all__ = ["LanesEnv", "Pool"]

#: Idle simulators by task.
Pool: TypeAlias = "defaultdict[str, list[SimulatorEnv]]"


class _Play(NamedTuple):
    """What a lane plays, and on what."""

    task: str
    env: SimulatorEnv | None  # none if it could not be made


class LanesEnv(EnvBase):
    """N lanes in one process, each running an episode of its own; see :meth:`assign`.

    TorchRL's ``SerialEnv`` runs N fixed environments and pays its bookkeeping, as much time as
    Meta-World's simulation takes, for each of them at every step; here it is paid once for all. A
    lane changes its task from episode to episode, and simulators are kept and used again.

    A simulator that raises or can not be made, and an action, observation or reward that is not
    finite, end the lane's episode as truncated: :attr:`errors` says why. The others go on.

    Args:
        make: a task's environment, by the task's name. All have the same observations and actions.
        tasks: of the lanes' first episodes, one a lane.
        pool: simulators by task that are used before others are made; at :meth:`close` they go
            back, with those that were made. Default: none, and all are freed.
        device: of the tensors.

    Keys: ``observation`` [N, O] and ``action`` [N, A] float32, ``task_id`` [N, 1] int64,
    ``success`` [N, 1] bool (false where there is no such thing), and under ``"next"`` ``reward``
    [N, 1], ``terminated``, ``truncated``, ``done`` [N, 1] bool. Resets and steps may be partial, by
    ``_reset`` and ``_step`` [N]; what is not stepped stays as it is, with a reward of 0.

    Attributes:
        errors: by lane, why its episode broke off, or ``None``.
        simulator_seconds: time spent inside of simulators so far.

    Examples:
        >>> from llmdpd_torchrl.envs import MetaWorldEnv
        >>> make = lambda task: MetaWorldEnv(task, num_goals=3, max_steps=5)
        >>> env = LanesEnv(make, ["reach-v3", "push-v3"])
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
        pool: Pool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        size = len(tasks)
        super().__init__(device=device, batch_size=torch.Size([size]))
        self.is_closed = False  # TorchRL's own environments of this kind have nothing to close
        self._make = make
        self._keep = pool is not None
        self._free: Pool = defaultdict(list) if pool is None else pool
        self.simulator_seconds = 0.0
        self.errors: list[str | None] = [None] * size
        self._plays = [_Play(task, None) for task in tasks]
        for lane, task in enumerate(tasks):
            self._replace(lane, task)
        made = [play.env for play in self._plays if play.env is not None]
        if not made:
            raise RuntimeError(self.errors[0])
        first = made[0]
        # Which goals there are differs from task to task: an episode's number is its maker's.
        keys = [key for key in ("observation", "task_id", "success") if key in _keys(first)]
        self.observation_spec = Composite(
            {key: _expand(first.observation_spec[key], size) for key in keys},
            shape=(size,),
            device=self.device,
        )
        self.action_spec = _expand(first.action_spec, size).to(self.device)
        self.reward_spec = _expand(first.reward_spec, size).to(self.device)
        self.full_done_spec = first.full_done_spec.expand(size).to(self.device)
        self._observations = np.zeros(self.observation_spec["observation"].shape, np.float32)
        self._task_ids = np.full((size, 1), first.task_id, np.int64)
        self._flags = {
            key: np.zeros((size, 1), bool) for key in ("success", "terminated", "truncated")
        }

    @property
    def task_names(self) -> list[str]:
        """The task of each lane."""
        return [play.task for play in self._plays]

    def assign(self, lane: int, task: str, episode: int) -> None:
        """Let a lane's next reset begin episode number ``episode`` of ``task``."""
        if self._plays[lane].task != task or self.errors[lane] is not None:
            self._replace(lane, task)
        env = self._plays[lane].env
        if env is None:
            return
        try:
            env.choose_episode(episode)
        except Exception as error:
            self._give_back(lane)
            self.errors[lane] = f"there is no such episode: {_line(error)}"

    def _replace(self, lane: int, task: str) -> None:
        """Give a lane a simulator of ``task``."""
        self._give_back(lane)
        self.errors[lane] = None
        try:
            env = self._free[task].pop() if self._free[task] else self._make(task)
        except Exception as error:  # a simulator raises what it likes; the lane reports it
            self._plays[lane] = _Play(task, None)
            self.errors[lane] = f"the simulator could not be made: {_line(error)}"
        else:
            self._plays[lane] = _Play(task, env)

    def _give_back(self, lane: int) -> None:
        task, env = self._plays[lane]
        self._plays[lane] = _Play(task, None)
        if env is not None and self.errors[lane] is None:
            self._free[task].append(env)
        elif env is not None:  # who knows what state it is in
            env.close(raise_if_closed=False)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        for lane in _lanes(mask, len(self._plays)):
            env = self._plays[lane].env
            for flags in self._flags.values():
                flags[lane] = False
            if env is None:  # the first step says so: a reset must not be done already
                self._observations[lane] = 0.0
                continue
            self.errors[lane] = None
            self._task_ids[lane] = env.task_id
            started = time.perf_counter()
            try:
                self._observations[lane] = env.begin()
            except Exception as error:
                self.errors[lane] = f"the simulator failed at reset: {_line(error)}"
                self._observations[lane] = 0.0
            self.simulator_seconds += time.perf_counter() - started
        return self._state()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict["action"].numpy(force=True)
        finite = np.isfinite(actions).all(-1)
        rewards = np.zeros((len(self._plays), 1), np.float32)
        for lane in _lanes(tensordict.get("_step", None), len(self._plays)):
            if self.errors[lane] is not None:
                self._flags["truncated"][lane] = True
                continue
            if not finite[lane]:
                self._break_off(lane, f"the policy's action is {actions[lane].tolist()}")
                continue
            env = self._plays[lane].env
            assert env is not None
            started = time.perf_counter()
            try:
                step = env.advance(actions[lane])
            except Exception as error:
                self._break_off(lane, f"the simulator failed: {_line(error)}")
                continue
            finally:
                self.simulator_seconds += time.perf_counter() - started
            if not (np.isfinite(step.observation).all() and np.isfinite(step.reward)):
                self._break_off(lane, "the simulator's observation or reward is not finite")
                continue
            self._observations[lane] = step.observation
            rewards[lane] = step.reward
            for key, flags in self._flags.items():
                flags[lane] = getattr(step, key)
        state = self._state()
        state["reward"] = torch.tensor(rewards, device=self.device)
        return state

    def _break_off(self, lane: int, reason: str) -> None:
        self.errors[lane] = reason
        self._flags["truncated"][lane] = True
        self._flags["success"][lane] = False

    def _state(self) -> TensorDict:
        flags = {key: torch.tensor(value) for key, value in self._flags.items()}
        if "success" not in _keys(self):
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
        for play in self._plays:
            if play.env is not None:
                play.env.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free all simulators, or put them back into the pool."""
        if not self.is_closed:
            for lane in range(len(self._plays)):
                self._give_back(lane)
            if not self._keep:
                for env in itertools.chain.from_iterable(self._free.values()):
                    env.close(raise_if_closed=False)
        super().close(raise_if_closed=raise_if_closed)


def _keys(env: EnvBase) -> list[Any]:
    return list(env.observation_spec.keys())


def _expand(spec: TensorSpec, size: int) -> TensorSpec:
    return spec.expand(size, *spec.shape)


def _lanes(mask: torch.Tensor | None, size: int) -> range | list[int]:
    return range(size) if mask is None else mask.reshape(-1).nonzero().squeeze(-1).tolist()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
