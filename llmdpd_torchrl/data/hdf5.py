"""HDF5 files of unknown origin: arrays and attributes of the file itself, and of no other."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from llmdpd_torchrl.utils.errors import DataError, first_line


def check_file(path: Path) -> None:
    """Raise a :class:`DataError` if ``path`` is not a file."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the .hdf5 file in it")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; correct the path")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; errors of HDF5 in the block become one line.

    Raises:
        DataError: if it is not a file, not HDF5, or damaged.
    """
    check_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # as h5py raises them for damaged files
        raise DataError(
            f"{path}: cannot be read as HDF5 ({first_line(error)}); it is damaged, cut short or "
            "of another kind: get it again"
        ) from None


def find_array(file: h5py.File, key: str) -> h5py.Dataset | None:
    """The array ``key``, or ``None`` if there is none.

    Links, virtual arrays and external storage are refused: they can make HDF5 open any other file.
    """
    parts = key.split("/")
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[:count])
        link = file.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{file.filename}: {name} is a link ({type(link).__name__}), which is not "
                "followed, for it may lead to other files; store the array itself"
            )
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        return None
    if item.is_virtual or item.external is not None:
        raise DataError(
            f"{file.filename}: {key} is stored in other files, which are not opened; store the "
            "array itself"
        )
    return item


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """The file's attributes as JSON values: JSON in text is parsed, other types become text."""
    return {key: _json_value(value) for key, value in file.attrs.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, list):
        return [_json_value(entry) for entry in value]
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):  # text that begins with a bracket is text
            return json.loads(value, parse_constant=str)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float) else str(value)
