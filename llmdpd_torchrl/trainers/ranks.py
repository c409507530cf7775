"""Training on several devices at once: a process each, a rank, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
#: Others wait as long for the first rank to collect data or to evaluate; torchrun ends those whose
#: neighbour has died.
_PATIENCE = datetime.timedelta(days=7)


class Ranks(NamedTuple):
    """This process among those that train together.

    Attributes:
        rank: its number; 0 logs, saves and evaluates.
        size: how many there are; 1: it trains alone.

    Examples:
        >>> Ranks().is_first
        True
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that logs, saves and evaluates."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed of its own for each rank; the first keeps the one that is given."""
        return seed + 1_000_003 * self.rank


def ranks() -> Ranks:
    """This process among those that :func:`join_ranks` has joined."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` has started, if it has; they part at the end.

    Gradients travel by NCCL between GPUs, which are then this process's own current devices, and
    by gloo elsewhere.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield ranks()
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process among those of ``torchrun`` on this machine; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """The first rank does this before the others, who find its files then."""
    if not ranks().is_first:
        barrier()
    yield
    if ranks().is_first:
        barrier()


def barrier() -> None:
    """Wait for all ranks."""
    if ranks().size > 1:
        dist.barrier()


def all_ranks(value: T) -> list[T]:
    """What each rank has given, in their order; anything that can be pickled, between processes."""
    size = ranks().size
    if size == 1:
        return [value]
    found: list[Any] = [None] * size
    dist.all_gather_object(found, value)
    return found


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the ranks, in one message."""
    size = ranks().size
    if size == 1:
        return
    given = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in given])
    dist.all_reduce(flat)
    parts = flat.div_(size).split([tensor.numel() for tensor in given])
    for tensor, part in zip(given, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def spread(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first rank."""
    if ranks().size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
