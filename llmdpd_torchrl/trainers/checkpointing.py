"""Checkpoints of a training: save, find, and resume bit for bit."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)
from torchrl.trainers import TrainerHookBase

from llmdpd_torchrl.trainers.offline import OfflineTrainer
from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError, first_line, notice
from llmdpd_torchrl.utils.files import (
    folder_lock,
    make_writable_folder,
    verify_checksums,
    write_checksums,
    write_folder_atomic,
)

_FORMAT_VERSION = 2
_NAME = re.compile(r"checkpoint-(\d{12})")  # of TorchRL's CheckpointRotation


@dataclass(frozen=True)
class SavedTraining:
    """A checkpoint whose checksums were verified.

    Attributes:
        path: its folder.
        step: updates made when it was saved.
        identity: data and settings of the training, see :class:`Checkpointing`.

    Examples:
        >>> SavedTraining(Path("run/checkpoint-000000000100"), 100, {"seed": 0}).step
        100
    """

    path: Path
    step: int
    identity: Mapping[str, Any]


class Checkpointing(TrainerHookBase):
    """Save the complete state of a training at regular intervals and when it stops.

    A checkpoint holds the loss with all networks and targets, optimizer, learning-rate schedule,
    counters, the sampler and its generator, all global generators, the running means of the log,
    the logger's position and every hook that is registered as a module. It does not hold the
    dataset: name its hash in ``identity``.

    TorchRL's ``Checkpoint`` and ``CheckpointRotation`` write and prune the files. Each checkpoint
    is written under a temporary name, covered by a checksum manifest, flushed to disk and renamed,
    so every visible checkpoint is complete. It is loaded with ``weights_only=True``: nothing in it
    is executed. It can be resumed on another device.

    A save that fails, for example because the disk is full, is reported once; the training
    continues, and the last good checkpoint stays.

    Args:
        folder: of the checkpoints; locked by one training while it runs.
        every: updates between saves, a multiple of the trainer's ``log_every``.
        keep: number of newest checkpoints to keep.
        identity: JSON values that identify the training, such as ``{"data_hash": ...}``. A training
            of another identity cannot resume from it.

    Raises:
        ConfigError: if a number is below 1, or the folder is not writable.

    Examples:
        >>> import tempfile
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
        >>> saved = find_checkpoint(folder)
        >>> resume(make_trainer(), saved)
        >>> saved.step
        4
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1000,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise ConfigError(f"checkpoint {name} is {value}: it must be at least 1")
        self.every = every
        self.folder = make_writable_folder(folder, "checkpoint", "its setting")
        self.identity = json.loads(json.dumps(identity or {}))
        self._rotation = CheckpointRotation(self.folder, keep_last=keep)
        self._failing = False
        self._trainer: OfflineTrainer | None = None

    def register(self, trainer: OfflineTrainer, name: str = "checkpointing") -> None:
        """Register after all other hooks, so that a checkpoint includes their results.

        Raises:
            ConfigError: if the trainer's rounds do not end at multiples of ``every``, or its
                buffer samples batches ahead, which cannot be resumed exactly.
        """
        if self.every % trainer.collector.updates:
            raise ConfigError(
                f"checkpoint every is {self.every}: use a multiple of "
                f"trainer.log_every={trainer.log_every}"
            )
        if trainer.batches.samples_ahead:
            raise ConfigError(
                "the replay buffer samples batches ahead, which cannot be resumed exactly: create "
                "it with prefetch=None"
            )
        self._trainer = trainer
        trainer.identity = {**self.identity, **trainer.identity}
        trainer.register_op("setup", self._begin)
        trainer.register_op("post_steps", self._after_round)

    def save(self) -> bool:
        """Save now; return whether it succeeded.

        Raises:
            DivergenceError: if a loss or gradient since the last log was not finite.
        """
        trainer = self._trainer
        assert trainer is not None
        trainer.check_finite()
        step = trainer.collected_frames
        about = {"version": _FORMAT_VERSION, "step": step, "identity": trainer.identity}
        try:
            # Left by an interrupted save, or by a run that has since resumed from an earlier step.
            stale = [path for number, path in _steps(self.folder).items() if number > step]
            for path in [*self.folder.glob(".*checkpoint-*"), *stale]:
                shutil.rmtree(path, ignore_errors=True)
            components = _components(trainer)
            trainer.last_checkpoint = self._rotation.save(components, step=step, metadata=about)
        except OSError as error:
            if not self._failing:
                last = trainer.last_checkpoint
                rest = "there is none yet" if last is None else f"{last} is kept"
                notice(
                    f"cannot save to {self.folder} ({_reason(error)}): training continues; last "
                    f"good checkpoint: {rest}"
                )
            self._failing = True
            return False
        self._failing = False
        return True

    def _after_round(self) -> None:
        assert self._trainer is not None
        if self._trainer.is_last_round or self._trainer.collected_frames % self.every == 0:
            self.save()

    def _begin(self) -> None:
        """Lock the folder while the training runs, and check that every state can be saved."""
        assert self._trainer is not None
        lock = folder_lock(self.folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another training saves into {self.folder}: wait for it, or choose another folder"
            ) from None
        self._trainer.during_training.callback(lock.release)
        _check_plain(self._trainer.state_dict(), "state")


def find_checkpoint(
    folder: str | os.PathLike[str],
    identity: Mapping[str, Any] | None = None,
    *,
    latest: float = math.inf,
) -> SavedTraining | None:
    """The newest complete checkpoint of a training; ``None`` if there is no checkpoint.

    Verifies every byte; loads and changes nothing. A damaged checkpoint is reported on stderr, with
    the file at fault, and the one before it is used.

    Args:
        folder: as given to :class:`Checkpointing`.
        identity: compared with that of the checkpoint; omitted keys are not compared.
        latest: number of updates after which it must not have been saved.

    Raises:
        DataError: if no checkpoint is complete, or another release wrote it.
        ConfigError: if its identity differs, for example its data.

    Examples:
        >>> import tempfile
        >>> find_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    steps = {step: path for step, path in _steps(Path(folder)).items() if step <= latest}
    for step in reversed(steps):
        try:
            saved = _open(steps[step], step)
        except DamagedError as error:
            notice(f"{error}; this checkpoint is skipped for the one before it")
            continue
        _check_identity(saved, identity or {})
        return saved
    if steps:
        raise DataError(
            f"{folder}: none of the {len(steps)} checkpoints is complete; delete them to train "
            "from scratch"
        )
    return None


def resume(trainer: OfflineTrainer, saved: SavedTraining) -> None:
    """Restore a checkpoint into a trainer that was built the same way, on any device.

    Register every hook first. Rows of ``metrics.csv`` after the checkpoint are removed, since they
    will be written again; pass the checkpoint's step to the logger (``resume_step``).

    Args:
        trainer: to restore into.
        saved: result of :func:`find_checkpoint`.

    Raises:
        ConfigError: if it belongs to another training, or does not fit the trainer.
    """
    _check_identity(saved, trainer.identity)
    try:
        # Loaded on the CPU: every component moves its tensors to its own device.
        _components(trainer).load(saved.path, map_location="cpu")
    except CheckpointError as error:
        raise ConfigError(
            f"{saved.path} does not fit this training ({_reason(error.__cause__ or error)}); build "
            "it as it was when it was saved, or train from scratch into another folder"
        ) from error
    trainer.last_checkpoint = saved.path


class _SafeCheckpoint(Checkpoint):
    """TorchRL's checkpoint, flushed to disk and with a checksum manifest before it is visible."""

    def save(self, path: str | Path, **options: Any) -> Path:
        def write(part: Path) -> None:
            super(_SafeCheckpoint, self).save(part, **options)
            write_checksums(part)

        write_folder_atomic(Path(path), write)
        return Path(path)


class _TorchAdapter(StateDictCheckpointAdapter):
    """``torch.save`` into memory first: into a file, it hides a full disk in a RuntimeError."""

    def save(
        self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        content = io.BytesIO()
        torch.save(component.state_dict(*args, **kwargs), content)
        path.mkdir(parents=True)
        (path / self.state_torch).write_bytes(content.getvalue())


class _RandomState(GlobalRNGState):
    """All global generators; on another machine, those of missing GPUs are left out."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        gpus = torch.cuda.device_count()
        state = {key: value for key, value in state_dict.items() if key != "torch_cuda"}
        if gpus and "torch_cuda" in state_dict:
            state["torch_cuda"] = state_dict["torch_cuda"][:gpus]
        super().load_state_dict(state)


def _components(trainer: OfflineTrainer) -> Checkpoint:
    """Everything that is saved."""
    checkpoint = _SafeCheckpoint()
    checkpoint.register_adapter(object, _TorchAdapter(payload_format="torch"))
    checkpoint.register("trainer", trainer)
    if trainer.logger is not None:
        checkpoint.register("logger", trainer.logger)
    return checkpoint.register("random", _RandomState())


def _steps(folder: Path) -> dict[int, Path]:
    """Folders of all checkpoints by step, in ascending order; TorchRL hides damaged ones."""
    if not folder.is_dir():
        return {}
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def _open(path: Path, step: int) -> SavedTraining:
    """Verify a checkpoint and read its metadata."""
    if (path / "seal.json").exists():
        raise DataError(f"{path}: an earlier release wrote it; resume with that, or delete it")
    verify_checksums(path, (".json", ".pt"))
    try:
        about = Checkpoint.manifest(path)["metadata"]
        version, saved_at, identity = about["version"], about["step"], dict(about["identity"])
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path / 'manifest.json'}: damaged ({_reason(error)})") from error
    if version != _FORMAT_VERSION:
        raise DataError(
            f"{path}: is version {version!r}, this release reads {_FORMAT_VERSION}; use the "
            "release that wrote it"
        )
    if saved_at != step:
        raise DamagedError(f"{path}: holds update {saved_at}, it was renamed")
    return SavedTraining(path, step, identity)


def _check_identity(saved: SavedTraining, identity: Mapping[str, Any]) -> None:
    """Raise a ConfigError that names the first key whose value differs."""
    for key, value in json.loads(json.dumps(identity)).items():  # as JSON stores it
        if saved.identity.get(key) != value:
            raise ConfigError(
                f"{saved.path} cannot be resumed: {key} is {value!r} now and was "
                f"{saved.identity.get(key)!r} when it was saved; change it back, or train from "
                "scratch into another folder"
            )


def _check_plain(value: Any, where: str) -> None:
    """Raise a TypeError that names what ``weights_only=True`` would not load."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    elif value is not None and not isinstance(value, bool | int | float | str | torch.Tensor):
        raise TypeError(f"{where}: a value of type {type(value).__name__} cannot be saved")


def _reason(error: BaseException) -> str:
    """The cause of an error, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    return first_line(error) or type(error).__name__
