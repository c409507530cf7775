"""A long training, and what it needs of memory and disk as it goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmdpd_torchrl.trainers.metrics_file import read_metrics
from tests.reliability import short_training

__all__ = ["Endurance", "endure"]

STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Endurance:
    """What a training needed after its beginning.

    Attributes:
        memory_slope: bytes of memory that it grew by with each update, a line through all.
        metrics_bytes: of ``metrics.csv`` for each of its rows.
        rows: of ``metrics.csv``.
        kept: most values that the trainer remembered of one logged number.
        checkpoints: that were there in the end.
    """

    memory_slope: float
    metrics_bytes: float
    rows: int
    kept: int
    checkpoints: int


def endure(folder: Path, updates: int) -> Endurance:
    """Train for long; needs Linux's ``/proc``."""
    trainer, _ = short_training.build(folder, updates=updates, log_every=100, every=1000)
    seen: list[tuple[int, int]] = []
    trainer.register_op(
        "post_steps", lambda: seen.append((trainer.collected_frames, _resident_bytes()))
    )
    trainer.train()
    later = np.array([row for row in seen if row[0] > updates // 4], dtype=np.float64).T
    metrics = folder / "metrics.csv"
    rows = len(read_metrics(metrics)[0])
    return Endurance(
        memory_slope=float(np.polyfit(later[0], later[1], 1)[0]),
        metrics_bytes=metrics.stat().st_size / rows,
        rows=rows,
        kept=max(len(values) for values in trainer._log_dict.values()),
        checkpoints=sum(path.is_dir() for path in (folder / "checkpoints").iterdir()),
    )


def _resident_bytes() -> int:
    """Memory of this process that is in use."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
