"""Any Gymnasium environment of vectors, with a rule for what success is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.parts import import_own
from llmdpd_torchrl.utils.settings import Flag, Number, Text, checked_dataclass
from llmdpd_torchrl.utils.spaces import check_vectors, flatten, named_fields


@checked_dataclass("success", frozen=True)
class SuccessRule:
    """When a task is solved. One of the four is given.

    Args:
        info: the entry of a step's ``info`` that says so.
        min_reward: a step with this reward, or a higher one.
        min_return: an episode whose rewards sum to so much, or more, at its end: before it, those
            of one with negative rewards would.
        terminated: the end of an episode that is no time limit's.

    Raises:
        ConfigError: if none is given, or several are.

    Examples:
        >>> rule = SuccessRule(min_reward=0.9)
        >>> rule.is_met(reward=1.0, total=1.0, terminated=False, truncated=False, info={})
        True
    """

    info: Text | None = None
    min_reward: Number | None = None
    min_return: Number | None = None
    terminated: Flag = False

    def __post_init__(self) -> None:
        given = [self.info, self.min_reward, self.min_return, self.terminated or None]
        if sum(value is not None for value in given) != 1:
            raise ConfigError("success: give one of info, min_reward, min_return, terminated")

    def is_met(
        self,
        *,
        reward: float,
        total: float,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
    ) -> bool:
        """Whether a step solves the task, ``total`` being the rewards up to it.

        Raises:
            ConfigError: if the step's ``info`` has no such entry.
        """
        if self.info is not None:
            if self.info not in info:
                has = ", ".join(sorted(map(str, info))) or "nothing"
                raise ConfigError(f"success.info is {self.info!r}, but a step's info has {has}")
            return bool(info[self.info])
        if self.min_reward is not None:
            return reward >= self.min_reward
        if self.min_return is not None:
            return (terminated or truncated) and total >= self.min_return
        return terminated


def import_modules(modules: Iterable[str], key: str = "import") -> None:
    """Import modules that register environments, also from the current folder.

    Raises:
        ConfigError: with ``key``, if one cannot be imported.
    """
    for name in modules:
        import_own(name, f"{key} {name}")


class GymnasiumEnv(SimulatorEnv):
    """An environment of Gymnasium's registry, in float32, with actions in [-1, 1].

    Actions are mapped to the bounds of the action space. A dictionary of vectors is one
    observation, in the order of the space. Episode N begins in the state of a seed that depends on
    ``seed`` and N alone.

    Args:
        task: an id, such as ``"Pendulum-v1"``, or ``"module:Id"``, which imports a module first; or
            a class, of a notebook say, which nobody has registered.
        options: further arguments of ``gymnasium.make``, or of the class.
        success: when the task is solved; default: nothing says so, and returns are compared.
        max_steps: time limit; default: the environment's own, which it must have then.
        stop_on_success: whether the first success ends an episode.
        seed: of the episodes' initial states.
        task_id: the constant value of ``task_id``, for data and policies of several tasks.
        render: anything but ``None``: with images; their size is the environment's.
        device: of the tensors.

    Attributes:
        fields: half-open index ranges of the observation by name, ``None`` if it has no names.

    Keys: those of :class:`~llmdpd_torchrl.envs.SimulatorEnv`.

    Raises:
        ConfigError: if there is no such environment, it cannot be made, its actions are no bounded
            vector, or it has no time limit.
        DataError: if its observations are no vectors.

    Examples:
        >>> env = GymnasiumEnv("Pendulum-v1", success=SuccessRule(min_return=-200.0))
        >>> env.rollout(5)["next", "success"].shape, env.observation_spec["observation"].shape
        (torch.Size([5, 1]), torch.Size([3]))
        >>> env.close()
    """

    def __init__(
        self,
        task: str | Callable[..., gymnasium.Env[Any, Any]],
        *,
        options: Mapping[str, Any] | None = None,
        success: SuccessRule | None = None,
        max_steps: int | None = None,
        stop_on_success: bool = True,
        seed: int = 0,
        task_id: int = 0,
        render: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        arguments = dict(options or {}) | ({} if render is None else {"render_mode": "rgb_array"})
        simulator = _make(task, arguments, max_steps)
        task = task if isinstance(task, str) else task.__name__
        self.space = simulator.observation_space
        check_vectors(self.space, task)
        bounds = simulator.action_space
        if not isinstance(bounds, spaces.Box) or len(bounds.shape) != 1:
            raise ConfigError(f"{task}: actions are {bounds}, they must be a vector (Box)")
        if not np.isfinite([bounds.low, bounds.high]).all():
            raise ConfigError(
                f"{task}: actions have no finite bounds ({bounds}): wrap the environment in "
                "gymnasium.wrappers.RescaleAction, or give it bounds"
            )
        limit = None if simulator.spec is None else simulator.spec.max_episode_steps
        if limit is None and max_steps is None:
            raise ConfigError(f"{task}: nothing ends its episodes in time: give max_steps")
        self.low, self.high = bounds.low.astype(np.float32), bounds.high.astype(np.float32)
        self.fields = named_fields(self.space)
        super().__init__(
            simulator,
            observation_dim=spaces.flatdim(self.space),
            action_dim=bounds.shape[0],
            task_id=task_id,
            seed=seed,
            has_success=success is not None,
            device=device,
        )
        self.task = task
        self.success = success
        self.stop_on_success = stop_on_success
        self._total = 0.0

    def begin(self) -> NDArray[np.float32]:
        """Start in the next initial state and return the first observation [O]."""
        self._total = 0.0
        return flatten(self.reset_simulator(), self.space).astype(np.float32)

    def advance(self, action: NDArray[np.float32]) -> SimulatorStep:
        """Act once, [A]."""
        scaled = self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)
        observation, reward, terminated, truncated, info = self.simulator.step(scaled)
        self._total += float(reward)
        success = self.success is not None and self.success.is_met(
            reward=float(reward),
            total=self._total,
            terminated=bool(terminated),
            truncated=bool(truncated),
            info=info,
        )
        return SimulatorStep(
            flatten(observation, self.space).astype(np.float32),
            float(reward),
            bool(terminated),
            bool(truncated) or (success and self.stop_on_success and not terminated),
            success,
        )


def _make(
    task: str | Callable[..., gymnasium.Env[Any, Any]],
    arguments: Mapping[str, Any],
    max_steps: int | None,
) -> gymnasium.Env[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions of environments
        try:
            if isinstance(task, str):
                return gymnasium.make(task, max_episode_steps=max_steps, **arguments)
            env = task(**arguments)
            return env if max_steps is None else TimeLimit(env, max_steps)
        except gymnasium.error.UnregisteredEnv as error:
            raise ConfigError(
                f"{task}: {first_line(error)} (an environment of your own: import the module that "
                "registers it)"
            ) from None
        except Exception as error:  # environments raise anything
            raise ConfigError(
                f"{task}: it cannot be made: {type(error).__name__}: {first_line(error)}"
            ) from error
