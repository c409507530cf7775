"""What acts in the recordings of the pendulum and of the mountain car."""

from collections.abc import Callable, Sequence

import numpy as np


def swing_up(gravity: float) -> Callable[[Sequence[float]], list[float]]:
    """Pump energy until the pole is up, then balance it; a function of the observation."""

    def act(observation: Sequence[float]) -> list[float]:
        cosine, sine, speed = observation
        angle = np.arctan2(sine, cosine)
        if cosine > 0.9:
            return [-gravity * angle - 2.0 * speed]
        missing = gravity / 2 - (speed**2 / 6 + gravity / 2 * cosine)
        return [2.0 * np.sign(missing * speed or 1.0)]

    return act


gravity_6, gravity_8, gravity_10, gravity_12 = map(swing_up, (6.0, 8.0, 10.0, 12.0))


def rock(observation: Sequence[float]) -> list[float]:
    """Accelerate the way the car rolls, until it is over the hill."""
    return [1.0 if observation[1] >= 0 else -1.0]
