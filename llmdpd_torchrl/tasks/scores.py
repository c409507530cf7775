"""D4RL's normalised scores: 0 is a random policy, 100 an expert."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType

from llmdpd_torchrl.utils.errors import ConfigError, first_line

__all__ = ["REFERENCE_RETURNS", "import_d4rl", "normalized_score", "reference_returns"]

#: Returns of a random policy and of an expert by environment, from D4RL (Fu et al. 2020).
REFERENCE_RETURNS: Mapping[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}


def normalized_score(name: str, episode_return: float) -> float:
    """100 (return - random) / (expert - random).

    Args:
        name: of an environment or dataset, such as ``"Hopper-v4"`` or ``"hopper-medium-v2"``.
        episode_return: undiscounted sum of an episode's rewards, or a mean of such sums.

    Raises:
        ConfigError: if there are no reference returns for ``name``.

    Examples:
        >>> normalized_score("Hopper-v4", 3234.3), normalized_score("hopper_random", -20.272305)
        (100.0, 0.0)
    """
    low, high = reference_returns(name)
    return 100.0 * (episode_return - low) / (high - low)


def reference_returns(name: str) -> tuple[float, float]:
    """Returns of a random policy and of an expert: built in, or the package d4rl's.

    Args:
        name: as for :func:`normalized_score`. The package knows its datasets' names only.

    Raises:
        ConfigError: if there are none.
    """
    key = name.lower().replace("_", "-").partition("-")[0]
    if key in REFERENCE_RETURNS:
        return REFERENCE_RETURNS[key]
    d4rl = import_d4rl()
    if d4rl is not None and name in d4rl.infos.REF_MIN_SCORE:
        return float(d4rl.infos.REF_MIN_SCORE[name]), float(d4rl.infos.REF_MAX_SCORE[name])
    raise ConfigError(
        f"no reference returns for {name!r}: built in are those of {', '.join(REFERENCE_RETURNS)}, "
        "and the optional package d4rl knows those of all its datasets"
    )


def import_d4rl() -> ModuleType | None:
    """The optional package d4rl; ``None``, with a warning, where it is not usable.

    It imports the old simulator bindings mujoco-py, which raise bare exceptions on most machines;
    nothing but the reference returns of rarer datasets needs it.
    """
    try:
        import d4rl
        import d4rl.infos
    except Exception as error:  # d4rl raises whatever its own dependencies raise
        reason = first_line(error)
        warnings.warn(
            f"the optional package d4rl is not usable ({type(error).__name__}: {reason})",
            stacklevel=2,
        )
        return None
    return d4rl
