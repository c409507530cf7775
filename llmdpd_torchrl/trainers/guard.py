"""Notice at once when a loss or a gradient stops being a number, and keep what tells why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from llmdpd_torchrl.utils.errors import DivergenceError, UserError, first_line
from llmdpd_torchrl.utils.files import write_json, write_tensors

if TYPE_CHECKING:
    from llmdpd_torchrl.trainers.offline import OfflineTrainer

__all__ = ["FiniteGuard"]

_MOST = 1000  # updates between looks, whatever the length of a round: bounds what is remembered
_SHOWN = 8  # rows in a message


class FiniteGuard:
    """Watches losses and gradient norms of every update, and waits for the device once a round.

    From the first update on that is not finite, the optimizer makes no more steps: the networks
    stay what they were before it. At the end of the round the training stops with an error that
    names the update and the rows of its batch, and ``divergence-UPDATE`` in ``folder`` holds them
    (``batch.safetensors``), the networks (``networks.safetensors``) and the numbers
    (``about.json``). No checkpoint is made of it; the last good one stays the last.

    Args:
        folder: for what is kept to be looked at; ``None`` keeps nothing.

    Examples:
        >>> guard = FiniteGuard()
        >>> guard.watch({"loss": torch.tensor(1.0)}), guard.watch({"loss": torch.tensor(torch.nan)})
        (tensor(0.), tensor(1.))
        >>> guard.watch({"loss": torch.tensor(1.0)})  # it remembers
        tensor(1.)
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._forget()

    def _forget(self) -> None:
        self._names: list[str] = []
        self._values: list[Tensor] = []
        self._rows: list[Tensor | None] = []
        self._broken: Tensor | None = None

    def remember(self, batch: TensorDictBase) -> TensorDictBase:
        """Remember which rows of the replay buffer a batch is made of."""
        rows = batch.get("index", default=None)
        self._rows.append(rows if isinstance(rows, Tensor) else None)
        return batch

    def watch(self, values: Mapping[str, Tensor]) -> Tensor:
        """Take in the scalars of one update; nothing is read back from the device.

        Returns:
            1 if one of them, or of an earlier update of this round, is not finite, else 0: what
            PyTorch's optimizers know as ``found_inf``.
        """
        self._names = list(values)
        row = torch.stack([value.detach().float() for value in values.values()])
        self._values.append(row)
        broken = 1.0 - row.isfinite().all().float()
        self._broken = broken if self._broken is None else torch.maximum(self._broken, broken)
        return self._broken

    @property
    def is_full(self) -> bool:
        """Whether so many updates were watched that it is time to look, within a round or not."""
        return len(self._values) >= _MOST

    def check(self, trainer: OfflineTrainer) -> None:
        """Look at what was watched since the last call. Waits for the device.

        Raises:
            DivergenceError: naming the first update that was not finite.
        """
        values, names, rows = self._values, self._names, self._rows
        self._forget()
        if not values:
            return
        numbers = torch.stack(values).cpu()
        wrong = ~numbers.isfinite()
        if not wrong.any():
            return
        first = int(wrong.any(-1).nonzero()[0])
        update = trainer.updates_made - len(values) + first + 1
        name = names[int(wrong[first].nonzero()[0])]
        found = dict(zip(names, numbers[first].tolist(), strict=True))
        indices = rows[first] if len(rows) == len(values) else None
        kept = self._keep(trainer, update, indices, None, found)
        raise DivergenceError(
            f"{name} is not finite at update {update}{_told(indices)}{kept}; lower the learning "
            "rate or the guidance's weight, or clip gradients"
        )

    def explain(self, trainer: OfflineTrainer, error: UserError, batch: TensorDictBase) -> None:
        """Say which rows it was that the loss refused, and keep them.

        Raises:
            UserError: of the same kind as ``error``.
        """
        update = trainer.updates_made
        indices = batch.get("index", default=None)
        kept = self._keep(trainer, update, indices, batch, {})
        raise type(error)(f"{error} (update {update}{_told(indices)}{kept})") from error

    def _keep(
        self,
        trainer: OfflineTrainer,
        update: int,
        rows: Tensor | None,
        batch: TensorDictBase | None,
        found: dict[str, float],
    ) -> str:
        """Write the dump; returns where it is and what the last good checkpoint is, in words."""
        last = None if trainer.checkpointing is None else trainer.checkpointing.last
        words = "" if last is None else f"; the last good checkpoint is {last.path}"
        if self.folder is None:
            return words
        folder = self.folder / f"divergence-{update}"
        if batch is None and rows is not None:
            batch = trainer.batches.replay_buffer.storage[rows.cpu()]
        about: dict[str, Any] = {
            "update": update,
            # As text: JSON knows neither NaN nor infinity.
            "values": {name: repr(value) for name, value in found.items()},
            "rows": None if rows is None else rows.flatten().tolist(),
            "networks": "as they were before this update, but for the targets",
            "checkpoint": None if last is None else str(last.path),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if batch is not None:
                write_tensors(folder / "batch.safetensors", batch.flatten_keys(".").to_dict())
            write_tensors(folder / "networks.safetensors", trainer.loss_module.state_dict())
            write_json(folder / "about.json", about)
        except OSError as error:
            return f"; it could not be kept in {folder} ({first_line(error)}){words}"
        return f"; kept in {folder}{words}"


def _told(rows: Tensor | None) -> str:
    if rows is None:
        return ""
    numbers = rows.flatten().tolist()
    rest = f", ... ({len(numbers)} in all)" if len(numbers) > _SHOWN else ""
    return f", made of the buffer's rows {', '.join(map(str, numbers[:_SHOWN]))}{rest}"
