"""Pickles that leave a mark where they are loaded, and where someone might put one."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch

__all__ = ["NAMES", "payload", "places", "zipped"]

#: Names under which one library or another looks for a pickle.
NAMES = (
    "other.pickle",
    "state.pt",
    "state.tdz",
    "state.pkl",
    "pytorch_model.bin",
    "arrays.npy",
    "checkpoint.ckpt",
    "weights.pth",
    "data.joblib",
)


class _Mark:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


def payload(mark: Path) -> bytes:
    """A pickle that makes the file ``mark`` when it is loaded."""
    return pickle.dumps(_Mark(mark))


def zipped(mark: Path) -> bytes:
    """The same as ``torch.save`` writes it."""
    content = io.BytesIO()
    torch.save(_Mark(mark), content)
    return content.getvalue()


def places(folder: Path) -> list[Path]:
    """``folder`` and every folder below it."""
    return [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
