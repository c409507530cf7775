"""Columns of transitions in files: written block by block, then mapped into memory, not read."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase
from torch import Tensor
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import file_sha256, read_document, write_json

#: Of the files; whatever changes what is in them changes it.
COLUMNS_VERSION = 1
_NAME = "columns.json"
_FORMAT = "llmdpd-columns"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.float32, torch.float64),
    )
}


class ColumnWriter:
    """Writes every column of a TensorDict ``[N]`` as the raw numbers of a file of its own.

    What is written is never held: memory is needed for one block. ``columns.json`` says which
    columns there are, their types and shapes, and the SHA-256 of each; it is written last.

    Args:
        folder: an empty one.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with ColumnWriter(folder) as writer:
        ...     for start in (0, 2):
        ...         block = {"x": torch.arange(start, start + 2), "next": {"r": torch.ones(2, 1)}}
        ...         writer.append(TensorDict(block, [2]))
        ...     columns = writer.finish()
        >>> columns["x"].tolist(), columns["next", "r"].shape
        ([0, 1, 2, 3], torch.Size([4, 1]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._files: dict[tuple[str, ...], BinaryIO] = {}
        self._layout: dict[tuple[str, ...], tuple[torch.dtype, torch.Size]] = {}
        self._digests: dict[tuple[str, ...], Any] = {}

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, block: TensorDictBase) -> None:
        """Write rows ``[n]`` behind those that are there; all blocks have the same columns."""
        columns = {_key(key): column for key, column in block.items(True, True)}
        layout = {key: (column.dtype, column.shape[1:]) for key, column in columns.items()}
        if not self._files:
            self._layout = layout
            for key in columns:
                self._files[key] = (self.folder / _file_name(key)).open("xb")
                self._digests[key] = hashlib.sha256()
        if layout != self._layout:
            raise ValueError(f"a block has columns {layout}, those before it {self._layout}")
        for key, column in columns.items():
            data = raw_bytes(column.numpy())
            self._files[key].write(data)
            self._digests[key].update(data)
        self.rows += len(block)

    def finish(self) -> TensorDict:
        """Flush all files to disk, write ``columns.json``, and map what was written."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        columns = [
            {
                "key": list(key),
                "dtype": str(dtype).removeprefix("torch."),
                "shape": list(shape),
                "sha256": self._digests[key].hexdigest(),
            }
            for key, (dtype, shape) in self._layout.items()
        ]
        document = {"format": _FORMAT, "format_version": COLUMNS_VERSION}
        write_json(self.folder / _NAME, document | {"rows": self.rows, "columns": columns})
        return map_columns(self.folder, verify=False)


def map_columns(folder: Path, *, verify: bool = True, progress: bool = False) -> TensorDict:
    """The columns that :class:`ColumnWriter` wrote, as memory-mapped tensors.

    Changing one of them in place changes its file. Nothing is unpickled.

    Args:
        folder: that they were written to.
        verify: read every column once and compare its SHA-256 with ``columns.json``; without it,
            only the sizes of the files are compared.
        progress: whether that shows a bar.

    Raises:
        DataError: if a file is missing, cut short or changed.
    """
    remedy = f"delete {folder} to convert the data anew"
    path = folder / _NAME
    if not path.is_file():
        raise DataError(f"{path}: missing; {remedy}")
    document = read_document(path, _FORMAT, COLUMNS_VERSION)
    try:
        rows = int(document["rows"])
        layout = {
            tuple(map(str, column["key"])): (
                _DTYPES[column["dtype"]],
                torch.Size([rows, *column["shape"]]),
                str(column["sha256"]),
            )
            for column in document["columns"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {remedy}") from None
    columns: dict[tuple[str, ...], Tensor] = {}
    bar = tqdm(layout.items(), desc="checking", unit="column", delay=1, disable=not progress)
    for key, (dtype, shape, sha256) in bar:
        file = folder / _file_name(key)
        wanted = shape.numel() * dtype.itemsize
        size = file.stat().st_size if file.is_file() else None
        if size != wanted:
            found = "missing" if size is None else f"{size} bytes instead of {wanted}"
            raise DataError(f"{file}: {found}; {remedy}")
        if verify and file_sha256(file) != sha256:
            raise DataError(f"{file}: damaged or changed (another SHA-256); {remedy}")
        columns[key] = MemoryMappedTensor.from_filename(file, dtype=dtype, shape=shape)
    return TensorDict(columns, batch_size=[rows])


def expect_random_reads(columns: TensorDictBase) -> None:
    """Tell the system that rows of mapped columns will be read in no order.

    Otherwise it reads up to megabytes around each row, which have to make way for others at once
    where the columns are larger than the memory. Does nothing to columns in memory, and where the
    C library has no ``madvise``.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_RANDOM") else None
    if madvise is None:
        return
    for column in columns.values(True, True):
        if isinstance(column, MemoryMappedTensor):
            start = column.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE  # a part may begin anywhere
            size = column.data_ptr() + column.nbytes - start
            # Advice: where it is not taken, reading is slower and nothing else.
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_RANDOM)


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The numbers of an array as bytes, without a copy where they lie side by side.

    Examples:
        >>> bytes(raw_bytes(np.array([[1, 256]], dtype="<u2")))
        b'\\x01\\x00\\x00\\x01'
    """
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _key(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _file_name(key: tuple[str, ...]) -> str:
    """A column's file: its key, and a hash where a file can not be called so."""
    name = ".".join(key)
    safe = re.sub(r"[^A-Za-z0-9_.]", "_", name)
    if safe != name or any("." in part for part in key):
        safe += "-" + hashlib.sha256("\0".join(key).encode()).hexdigest()[:8]
    return f"{safe}.raw"
