"""Save a training every so many updates, and continue it as if nothing had happened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from filelock import Timeout
from torchrl.checkpoint import Checkpoint, CheckpointError, GlobalRNGState
from torchrl.trainers import Trainer, TrainerHookBase

from llmdpd_torchrl.trainers.offline import OfflineTrainer
from llmdpd_torchrl.trainers.rotation import (
    Rotation,
    SavedTraining,
    check_identity,
    find_checkpoint,
)
from llmdpd_torchrl.trainers.state_files import StateFilesAdapter, encode_state
from llmdpd_torchrl.utils.errors import ConfigError, first_line, notice
from llmdpd_torchrl.utils.files import folder_lock, make_writable_folder

__all__ = ["Checkpointing", "resume"]


class Checkpointing(TrainerHookBase):
    """Save everything that a training is, every so many updates and when it stops.

    Saved are the loss with all its networks, targets and constants, optimizer, schedule, counters,
    the sampler and its generator, all global generators, the averages since the last log entry, the
    logger's position, and every hook that is registered as a module. The dataset is not: name its
    hash in ``identity``. TorchRL's ``Checkpoint`` gathers these; its files are written and read by
    :class:`~llmdpd_torchrl.trainers.state_files.StateFilesAdapter`, so that nothing is unpickled.

    A save that fails, because the disk is full, is said once and the training goes on; the last
    good checkpoint stays.

    Args:
        folder: of the checkpoints; it belongs to one training, which locks it while it runs.
        every: updates between saves. The trainer must look up at these: use a multiple of its
            ``log_every``.
        keep: how many of the newest stay.
        milestones: keep every checkpoint at a multiple of so many updates, too.
        best: a metric that is logged and ``"max"`` or ``"min"``: keep the checkpoint at which it
            was the best, too. Only those count at whose update it was logged.
        identity: what the training is, as JSON has it, such as ``{"data_hash": ...}``. A training
            of another identity refuses to continue it.

    Raises:
        ConfigError: if a number is below 1, or the folder can not be written to.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> def make_trainer():
        ...     step = {"observation": torch.randn(32, 3), "reward": torch.randn(32, 1)}
        ...     step |= {k: torch.zeros(32, 1, dtype=torch.bool) for k in ("terminated", "done")}
        ...     data = {"observation": torch.randn(32, 3), "action": torch.rand(32, 2)}
        ...     buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(32), batch_size=8)
        ...     _ = buffer.extend(TensorDict({**data, "next": step}, [32]))
        ...     actor = DiffusionActor(2, 3, hidden=(8,), in_keys=["observation"])
        ...     loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(8,)))
        ...     return OfflineTrainer(loss, buffer, total_updates=4, progress_bar=False)
        >>> folder = tempfile.mkdtemp()
        >>> trainer = make_trainer()
        >>> Checkpointing(folder, every=4).register(trainer)
        >>> trainer.train()
        >>> resume(make_trainer(), folder).step
        4
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1000,
        keep: int = 2,
        milestones: int | None = None,
        best: tuple[str, Literal["max", "min"]] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if every < 1:
            raise ConfigError(f"checkpoint every is {every}: it must be at least 1 update")
        self.every = every
        self.metric = None if best is None else best[0]
        self.identity = json.loads(json.dumps(identity or {}))
        self.rotation = Rotation(
            make_writable_folder(folder, "checkpoint", "its setting"),
            keep=keep,
            milestones=milestones,
            best=None if best is None else best[1],
        )
        self.last: SavedTraining | None = None
        self._failing = False
        self._trainer: OfflineTrainer | None = None

    def register(self, trainer: Trainer, name: str = "checkpointing") -> None:
        """Take part in a training.

        Raises:
            ConfigError: if the trainer does not look up at these intervals, or its batches are
                drawn ahead of time, which could not be continued exactly.
        """
        if not isinstance(trainer, OfflineTrainer):
            raise ConfigError(f"checkpoints are of an OfflineTrainer, not {type(trainer).__name__}")
        if self.every % trainer.collector.updates:
            raise ConfigError(
                f"checkpoint every is {self.every}: use a multiple of "
                f"trainer.log_every={trainer.log_every}"
            )
        if trainer.batches.are_drawn_ahead:
            raise ConfigError(
                "the replay buffer draws batches ahead of time, which can not be continued "
                "exactly: make it with prefetch=None"
            )
        self._trainer = trainer
        trainer.checkpointing = self
        trainer.register_op("setup", self._begin)
        # The last thing of every round: what it logs and evaluates is saved with it.
        trainer.register_op("post_steps", self._after_round)

    def save(self) -> bool:
        """Save now; returns whether it worked."""
        assert self._trainer is not None
        try:
            self.last = self.rotation.save(
                _gather(self._trainer),
                self._trainer.collected_frames,
                identity={**self.identity, **self._trainer.plan},
                metric=None if self.metric is None else self._trainer.logged_now(self.metric),
            )
        except OSError as error:
            if not self._failing:
                kept = "there is none yet" if self.last is None else f"{self.last.path} is kept"
                notice(
                    f"can not save to {self.rotation.folder} ({_reason(error)}): training goes on; "
                    f"of the last good checkpoint: {kept}"
                )
            self._failing = True
            return False
        self._failing = False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is saved does not depend on when it is."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _after_round(self) -> None:
        assert self._trainer is not None
        if self._trainer.is_last_round or self._trainer.collected_frames % self.every == 0:
            self.save()

    def _begin(self) -> None:
        """Hold the folder as long as the trainer trains, and see that all can be saved."""
        assert self._trainer is not None
        lock = folder_lock(self.rotation.folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another training saves into {self.rotation.folder}: wait for it, or choose "
                "another folder"
            ) from None
        self._trainer.during_training.callback(lock.release)
        # A hook whose state can not be saved is better known now than after hours.
        encode_state(self._trainer.state_dict(), {})


def resume(
    trainer: OfflineTrainer,
    saved: SavedTraining | str | os.PathLike[str],
    identity: Mapping[str, Any] | None = None,
) -> SavedTraining | None:
    """Bring a trainer that was built the same way to where a checkpoint left it.

    Register every hook first. ``metrics.csv`` loses the rows after the checkpoint, which will be
    written again; give its step to the logger (``resume_step``) when it is made.

    Args:
        trainer: to be continued.
        saved: what :func:`find_checkpoint` found, or the folder of all checkpoints, of which the
            newest whole one is taken.
        identity: see :class:`Checkpointing`; default: that of the trainer's.

    Returns:
        what was loaded; ``None`` if the folder holds no checkpoint.

    Raises:
        ConfigError: if it is of another training, or does not fit the trainer.
        DataError: if checkpoints are there, and none is whole.
    """
    if identity is None and trainer.checkpointing is not None:
        identity = trainer.checkpointing.identity
    if not isinstance(saved, SavedTraining):
        found = find_checkpoint(saved, identity)
        if found is None:
            return None
        saved = found
    check_identity(saved, {**(identity or {}), **trainer.plan})
    try:
        # On the CPU: everything brings its tensors to where it has them itself.
        _gather(trainer).load(saved.path, map_location="cpu")
    except CheckpointError as error:
        raise ConfigError(
            f"{saved.path} does not fit this training ({_reason(error.__cause__ or error)}); build "
            "it as it was when it was saved, or train anew into another folder"
        ) from error
    return saved


def _gather(trainer: OfflineTrainer) -> Checkpoint:
    """All that is saved, in TorchRL's terms."""
    checkpoint = Checkpoint().register_adapter(object, StateFilesAdapter())
    checkpoint.register("trainer", trainer)
    if trainer.logger is not None:
        checkpoint.register("logger", trainer.logger)
    return checkpoint.register("random", GlobalRNGState())


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    return first_line(error) or type(error).__name__
