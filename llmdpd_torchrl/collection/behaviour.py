"""How scripted experts behave in collected episodes: disturbed, slower, pushed, on a detour."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.utils.settings import (
    Flag,
    Fraction,
    NonNegative,
    Probability,
    Size,
    checked_dataclass,
)

_ROBOT_JOINTS = 9  # degrees of freedom that come before the object's
_HAND_SPACE = np.array([[-0.35, 0.4, 0.1], [0.35, 0.85, 0.35]])  # where detours go, in m
_DETOUR_STEPS = 40


@checked_dataclass("behaviour", frozen=True)
class Behaviour:
    """What is done to an expert in an episode; by default nothing.

    Args:
        episodes: consecutive episodes with this behaviour.
        noise: standard deviation of the action noise.
        gain: factor on the expert's movement, not on its gripper; below 1 it is slower.
        hand_pushes: probability, per step, that a push of the hand begins: for 4 to 15 steps the
            movement is one random direction, and in two of three pushes the gripper is forced open
            or closed.
        object_pushes: probability, per step, that the object gets a random velocity.
        detour: whether the hand first goes a longer way: from a random one of the first 30 steps
            it heads for a point 12 to 20 cm off, for at most 40 steps.
        expert: ``"scene"``: not the task's own expert, but those of all tasks of its scene in turn,
            see :data:`~llmdpd_torchrl.tasks.SCENES`.
        random: whether actions are uniformly random instead.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> Behaviour(noise=0.1, hand_pushes=0.03).to_dict()
        {'noise': 0.1, 'hand_pushes': 0.03}
    """

    episodes: Size = 1
    noise: NonNegative = 0.0
    gain: Fraction = 1.0
    hand_pushes: Probability = 0.0
    object_pushes: Probability = 0.0
    detour: Flag = False
    expert: Literal["own", "scene"] = "own"
    random: Flag = False

    def to_dict(self) -> dict[str, Any]:
        """What is not as by default."""
        usual = asdict(Behaviour())
        return {key: value for key, value in asdict(self).items() if value != usual[key]}


class BehavingExpert:
    """A Meta-World expert under a behaviour, for one episode.

    Without a detour or a push, its action is clip(gain * clip(expert) + noise * N(0, 1)). The seed
    determines everything random.

    Args:
        expert: one of ``metaworld.policies``.
        behaviour: see :class:`Behaviour`.
        seed: of the episode.
        max_steps: of the episode.
        clip: whether noise is added to the clipped expert; it always is where the gain is not 1.

    Examples:
        >>> from types import SimpleNamespace
        >>> forwards = SimpleNamespace(get_action=lambda observation: np.array([0.0, 2, 0, 1]))
        >>> behaviour = Behaviour(gain=0.5)
        >>> expert = BehavingExpert(forwards, behaviour, seed=0, max_steps=5)
        >>> wanted, executed = expert.act(np.full(39, 0.1))
        >>> bool((executed[:3] == wanted[:3] / 2).all())
        True
    """

    def __init__(
        self, expert: Any, behaviour: Behaviour, *, seed: int, max_steps: int, clip: bool = True
    ) -> None:
        self.expert, self.behaviour, self.clip = expert, behaviour, clip or behaviour.gain != 1.0
        self._random = np.random.default_rng(seed)
        self._noise = self._random.standard_normal((max_steps, 4)) * behaviour.noise
        self._detour_begins = int(self._random.integers(0, 30)) if behaviour.detour else max_steps
        self._waypoint: NDArray[np.float64] | None = None
        self._step = self._push_ends = 0
        self._push = np.zeros(4)

    def act(
        self, observation: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the expert wants at an observation [39], and what is to be executed, [4] each."""
        hand = observation[:3].copy()
        action = self.expert.get_action(observation)  # some experts change what they are given
        wanted = np.clip(action, -1.0, 1.0)
        if self.clip:
            action = np.append(self.behaviour.gain * wanted[:3], wanted[3])
        if self.behaviour.random:
            action = self._random.uniform(-1.0, 1.0, 4)
        if self.behaviour.detour:
            self._go_around(action, hand)
        if self.behaviour.hand_pushes:
            self._push_hand(action)
        action = np.clip(action + self._noise[self._step], -1.0, 1.0)
        self._step += 1
        return wanted.astype(np.float32), action.astype(np.float32)

    def push_object(self, simulator: Any) -> None:
        """Give the object a velocity of 0.5 m/s in standard deviation, in some of the steps."""
        probability = self.behaviour.object_pushes
        if probability and self._random.random() < probability:
            velocity = simulator.data.qvel[_ROBOT_JOINTS : _ROBOT_JOINTS + 3]  # a view
            velocity += 0.5 * self._random.normal(size=len(velocity))

    def _go_around(self, action: NDArray[Any], hand: NDArray[np.float64]) -> None:
        if self._step == self._detour_begins:
            direction = self._random.normal(size=3)
            direction[2] = abs(direction[2])
            direction *= self._random.uniform(0.12, 0.2) / np.linalg.norm(direction)
            self._waypoint = np.clip(hand + direction, *_HAND_SPACE)
        if self._waypoint is None or self._step >= self._detour_begins + _DETOUR_STEPS:
            return
        way = self._waypoint - hand
        action[:3] = np.clip(10.0 * way, -1.0, 1.0)
        if np.linalg.norm(way) < 0.02:
            self._waypoint = None  # reached

    def _push_hand(self, action: NDArray[Any]) -> None:
        random = self._random
        if self._step >= self._push_ends and random.random() < self.behaviour.hand_pushes:
            self._push_ends = self._step + int(random.integers(4, 16))
            direction = random.normal(size=3)
            self._push[:3] = direction / np.linalg.norm(direction)
            self._push[3] = random.choice([-1.0, 0.0, 1.0])
        if self._step < self._push_ends:
            forced = 4 if self._push[3] else 3
            action[:forced] = self._push[:forced]
