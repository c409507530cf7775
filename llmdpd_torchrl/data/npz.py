"""NumPy's ``.npz`` files with arrays in D4RL's layout."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmdpd_torchrl.data.d4rl import check_file, iter_d4rl_arrays
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.utils.errors import DataError, first_line
from llmdpd_torchrl.utils.memory import check_memory


def iter_npz_file(path: Path, *, name: str | None = None, **options: Any) -> Iterator[Recording]:
    """The episodes of a file, see :func:`~llmdpd_torchrl.data.d4rl.iter_d4rl_arrays`.

    The arrays have the names of that layout, ``infos/success`` among them. Nothing is unpickled.

    Raises:
        ConfigError: if it does not fit into memory.
        DataError: if it is no such file, damaged, holds objects, or an array is missing.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        check_memory(2 * size, str(path))
        with np.load(path, allow_pickle=False) as file:
            yield from iter_d4rl_arrays(
                file, name=name or path.stem, source=str(path), attributes={}, **options
            )
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({first_line(error)}); it is damaged, holds objects "
            "instead of numbers, or is of another kind"
        ) from None
