"""Whether saved tensors are those that a module asks for, said by name and shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llmdpd_torchrl.utils.errors import DataError

__all__ = ["check_state"]


def check_state(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str, by: str
) -> None:
    """Refuse tensors of other names or shapes.

    Args:
        found: what was saved.
        wanted: the state_dict of the module that it is for.
        where: what ``found`` is called in a message.
        by: what ``wanted`` is called.

    Raises:
        DataError: naming the first that differs.

    Examples:
        >>> check_state({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, "file", "the network")
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.DataError: file: a is [2], the network asks for [3]
    """
    for name in sorted(wanted.keys() | found.keys()):
        shapes = [list(state[name].shape) if name in state else "nothing"
                  for state in (found, wanted)]  # fmt: skip
        if shapes[0] != shapes[1]:
            raise DataError(f"{where}: {name} is {shapes[0]}, {by} asks for {shapes[1]}")
