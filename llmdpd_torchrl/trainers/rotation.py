"""The folder of a training's checkpoints: whole ones only, the newest, the best, milestones."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchrl.checkpoint import Checkpoint

from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError, notice
from llmdpd_torchrl.utils.files import sync
from llmdpd_torchrl.utils.seal import open_seal, read_seal, seal_folder

__all__ = ["Rotation", "SavedTraining", "check_identity", "find_checkpoint"]

_FORMAT = "llmdpd-checkpoint"
_FORMAT_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{12})")


@dataclass(frozen=True)
class SavedTraining:
    """A checkpoint that was found whole.

    Attributes:
        path: its folder.
        step: updates that had been made.
        identity: what it may be continued as, see
            :class:`~llmdpd_torchrl.trainers.Checkpointing`.

    Examples:
        >>> SavedTraining(Path("run/checkpoint-000000000100"), 100, {"seed": 0}).step
        100
    """

    path: Path
    step: int
    identity: Mapping[str, Any] = field(default_factory=dict)


class Rotation:
    """Save checkpoints into one folder, and remove those that nobody will need.

    A checkpoint is written under another name, sealed (:mod:`llmdpd_torchrl.utils.seal`), flushed
    to disk and renamed: at every moment each one that can be seen is whole. TorchRL's
    ``CheckpointRotation`` passes over damaged checkpoints without a word, and knows no milestones.

    Args:
        folder: of the checkpoints; its folder's names are TorchRL's.
        keep: how many of the newest stay.
        milestones: keep every checkpoint whose step is a multiple of this, too.
        best: ``"max"`` or ``"min"``: keep the one whose metric is the best, too; of equal ones the
            later.

    Raises:
        ConfigError: if a number is below 1, or ``best`` is unknown.

    Examples:
        >>> import tempfile
        >>> rotation = Rotation(tempfile.mkdtemp(), keep=1, best="max")
        >>> for step, metric in enumerate([0.1, 0.9, 0.2, 0.3]):
        ...     _ = rotation.save(Checkpoint(), step, metric=metric)
        >>> sorted(rotation.steps())
        [1, 3]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        milestones: int | None = None,
        best: Literal["max", "min"] | None = None,
    ) -> None:
        for name, value in {"keep": keep, "milestones": milestones or 1}.items():
            if value < 1:
                raise ConfigError(f"checkpoint {name} is {value}: it must be at least 1")
        if best not in ("max", "min", None):
            raise ConfigError(f"checkpoint best is {best!r}: choose max, min or null")
        self.folder = Path(folder)
        self.keep = keep
        self.milestones = milestones
        self.best = best

    def steps(self) -> dict[int, Path]:
        """The folders of all checkpoints, whole or damaged, by step from old to new."""
        if not self.folder.is_dir():
            return {}
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in named if match))

    def save(
        self,
        checkpoint: Checkpoint,
        step: int,
        *,
        identity: Mapping[str, Any] | None = None,
        metric: float | None = None,
    ) -> SavedTraining:
        """Save, then remove what the settings do not keep, and what is of a later step.

        Later steps can only be left from before the training went back to an earlier one.

        Raises:
            OSError: if the disk is full, for example. The checkpoints that were there are kept.
        """
        self._sweep()
        final = self.folder / f"checkpoint-{step:012d}"
        stage = self.folder / f".new-{final.name}"
        identity = dict(identity or {})
        about = {"step": step, "identity": identity, "metric": metric}
        try:
            checkpoint.save(stage)
            seal_folder(stage, _FORMAT, _FORMAT_VERSION, about)
            if final.exists():
                final.rename(self.folder / f".old-{final.name}")
            stage.rename(final)
            sync(self.folder)
        finally:
            self._sweep()
        for old in set(self.steps()) - self._kept(step):
            self._remove(self.steps()[old])
        return SavedTraining(final, step, identity)

    def open(self, step: int) -> SavedTraining:
        """Check every byte of one checkpoint.

        Raises:
            DamagedError: naming the file that is not what was written.
            DataError: if another release wrote it.
        """
        path = self.steps()[step]
        about = open_seal(path, _FORMAT, _FORMAT_VERSION)
        if about["step"] != step:
            raise DamagedError(f"{path}: holds update {about['step']}, it was renamed")
        return SavedTraining(path, step, about["identity"])

    def whole(self) -> Iterator[SavedTraining]:
        """The checkpoints that are whole, from new to old; says what is wrong with the others."""
        for step in reversed(self.steps()):
            try:
                yield self.open(step)
            except DamagedError as error:
                notice(f"{error}; this checkpoint is passed over for the one before it")

    def _kept(self, newest: int) -> set[int]:
        steps = [step for step in self.steps() if step <= newest]
        kept = set(steps[-self.keep :])
        if self.milestones is not None:
            kept.update(step for step in steps if step % self.milestones == 0)
        metrics = {} if self.best is None else {step: self._metric(step) for step in steps}
        known = {step: value for step, value in metrics.items() if value is not None}
        if known:
            sign = 1 if self.best == "max" else -1
            kept.add(max(known, key=lambda step: (sign * known[step], step)))
        return kept

    def _metric(self, step: int) -> float | None:
        try:
            return read_seal(self.steps()[step])["about"]["metric"]
        except DamagedError:
            return None  # a damaged one is not the best

    def _remove(self, path: Path) -> None:
        # Renamed first, so that an interruption leaves no half of it under its name.
        path.rename(self.folder / f".old-{path.name}")
        self._sweep()

    def _sweep(self) -> None:
        """Remove what an interrupted save has left."""
        for path in self.folder.glob(".*checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(
    folder: str | os.PathLike[str], identity: Mapping[str, Any] | None = None
) -> SavedTraining | None:
    """The newest whole checkpoint of a training, ``None`` if it has saved none yet.

    Nothing is loaded or changed; every byte is checked. A damaged checkpoint is named on stderr and
    the one before it is taken.

    Args:
        folder: that the training saves into.
        identity: what is to be continued, as given to
            :class:`~llmdpd_torchrl.trainers.Checkpointing`; keys that are left out are not
            compared.

    Raises:
        DataError: if there are checkpoints and none is whole, or another release wrote it.
        ConfigError: if it is of another training: of other data, for example.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> find_checkpoint(folder) is None
        True
        >>> _ = Rotation(folder).save(Checkpoint(), 20, identity={"data_hash": "a1"})
        >>> find_checkpoint(folder, {"data_hash": "a1"}).step
        20
        >>> find_checkpoint(folder, {"data_hash": "b2"})
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.ConfigError: ... data_hash is 'b2' now and was 'a1' when it was saved...
    """  # noqa: E501 (the message is one line)
    rotation = Rotation(folder)
    found = next(rotation.whole(), None)
    if found is None:
        if rotation.steps():
            raise DataError(
                f"{folder}: none of the {len(rotation.steps())} checkpoints is whole; delete them "
                "to start the training anew"
            )
        return None
    check_identity(found, identity or {})
    return found


def check_identity(saved: SavedTraining, identity: Mapping[str, Any]) -> None:
    """Refuse to continue as something else.

    Raises:
        ConfigError: naming the first key whose value differs.
    """
    for key, value in json.loads(json.dumps(identity)).items():  # as it was saved
        if saved.identity.get(key) != value:
            raise ConfigError(
                f"{saved.path} can not be continued: {key} is {value!r} now and was "
                f"{saved.identity.get(key)!r} when it was saved; change it back, or train anew "
                "into another folder"
            )
