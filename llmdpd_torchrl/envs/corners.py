"""A toy for first tries and tests: a point that is to go to one of four corners.

The corner is not observed: what is to be done, only a text or a demonstration says.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

CORNERS = {"ne": (1.0, 1.0), "nw": (-1.0, 1.0), "se": (1.0, -1.0), "sw": (-1.0, -1.0)}
#: Widest distance from the corner that counts as being there.
NEAR = 0.2
_SPEED, _PIXELS = 0.1, 96


class CornerEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point in a square of side 2, which moves by a tenth of the action.

    The observation is its position [2], the reward minus its distance from the corner; ``info``
    has ``is_success``, which is true within 0.2 of it. It is registered as ``llmdpd/Corner-v0``,
    with a time limit of 40 steps, by importing this module.

    Args:
        corner: ``ne``, ``nw``, ``se`` or ``sw``.
        render_mode: ``None`` or ``rgb_array``.

    Examples:
        >>> env = gymnasium.make("llmdpd/Corner-v0", corner="sw")
        >>> env.reset(seed=0)[0].shape, env.action_space.shape
        ((2,), (2,))
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, corner: str = "ne", render_mode: str | None = None) -> None:
        self.corner = np.array(CORNERS[corner], np.float32)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.5, 1.5, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = np.zeros(2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start anywhere in the middle."""
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.5, 0.5, 2).astype(np.float32)
        return self.position.copy(), {"is_success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move."""
        moved = self.position + _SPEED * np.clip(action, -1.0, 1.0)
        self.position = np.clip(moved, -1.5, 1.5).astype(np.float32)
        distance = float(np.linalg.norm(self.position - self.corner))
        return self.position.copy(), -distance, False, False, {"is_success": distance <= NEAR}

    def render(self) -> NDArray[np.uint8]:
        """The square from above, with the corner in green and the point in black."""
        image = np.full((_PIXELS, _PIXELS, 3), 240, np.uint8)
        for (x, y), colour in ((self.corner, (60, 160, 60)), (self.position, (20, 20, 20))):
            column, row = (int((v + 1.5) / 3 * (_PIXELS - 1)) for v in (x, -y))
            image[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = colour
        return image


def go_to(corner: str) -> Any:
    """A policy that goes straight to a corner, for recordings: from observation to action."""
    target = np.array(CORNERS[corner], np.float32)
    return lambda observation: np.clip((target - observation) / _SPEED, -1.0, 1.0)


def go_ne(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`go_to` the upper right."""
    return go_to("ne")(observation)


def go_nw(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`go_to` the upper left."""
    return go_to("nw")(observation)


def go_se(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`go_to` the lower right."""
    return go_to("se")(observation)


def go_sw(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`go_to` the lower left."""
    return go_to("sw")(observation)


gymnasium.register("llmdpd/Corner-v0", entry_point=f"{__name__}:CornerEnv", max_episode_steps=40)
