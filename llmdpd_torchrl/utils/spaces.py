"""Gymnasium's spaces of vectors: what they hold by name, and flat."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdpd_torchrl.utils.errors import DataError


def check_vectors(space: spaces.Space[Any], source: str) -> None:
    """Refuse observations that are no vector, nor a dictionary of vectors.

    Raises:
        DataError: naming ``source`` and the space.
    """
    if isinstance(space, spaces.Dict):
        for part in space.values():
            check_vectors(part, source)
    elif not isinstance(space, spaces.Box):
        raise DataError(
            f"{source}: observations are {type(space).__name__}, they must be vectors (Box), or a "
            "Dict of them"
        )
    elif len(space.shape) > 1 and (space.dtype == np.uint8 or len(space.shape) > 2):
        raise DataError(
            f"{source}: observations are images {[*space.shape]}, and policies here read states: "
            "give a wrapper that returns the state"
        )


def flatten(observations: Any, space: spaces.Space[Any], *, batch: bool = False) -> NDArray[Any]:
    """Observations as vectors ``[O]``, or ``[T, O]`` of a ``batch``, in the order of the space."""
    if isinstance(space, spaces.Dict):
        parts = [flatten(observations[key], part, batch=batch) for key, part in space.items()]
        return np.concatenate(parts, axis=-1)
    array = np.asarray(observations)
    return array.reshape(len(array), -1) if batch else array.reshape(-1)


def named_fields(space: spaces.Space[Any]) -> dict[str, tuple[int, int]] | None:
    """Half-open index ranges of the vectors in a dictionary, by key; ``None`` for a vector.

    Examples:
        >>> space = spaces.Dict({"goal": spaces.Box(-1, 1, (2,)), "hand": spaces.Box(-1, 1, (3,))})
        >>> named_fields(space)
        {'goal': (0, 2), 'hand': (2, 5)}
    """
    if not isinstance(space, spaces.Dict):
        return None
    sizes = {str(key): spaces.flatdim(part) for key, part in space.items()}
    ends = itertools.accumulate(sizes.values())
    return {key: (end - size, end) for (key, size), end in zip(sizes.items(), ends, strict=True)}
