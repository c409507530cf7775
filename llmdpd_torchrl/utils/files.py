"""Files that are either whole or not there, folders that one process at a time changes, hashes."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmdpd_torchrl.utils.errors import ConfigError, DataError

__all__ = [
    "DISK_ERRORS",
    "file_sha256",
    "folder_lock",
    "make_writable_folder",
    "read_document",
    "sync",
    "write_atomic",
    "write_folder_atomic",
    "write_json",
    "write_tensors",
    "write_text",
]

#: Numbers of an ``OSError`` that are the disk's fault: full, over quota, read-only, broken.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def make_writable_folder(folder: str | os.PathLike[str], what: str, setting: str) -> Path:
    """Make ``folder`` if need be, and check that files can be made in it.

    Args:
        folder: to be made.
        what: what it is called in a message.
        setting: the setting that names it.

    Raises:
        ConfigError: if it can not be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"can not make the {what} folder {folder} ({error.strerror}); set {setting} to one "
            "that you may write"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the {what} folder {folder} is not writable; set {setting} to another")
    return folder


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON file that says what it is: its ``format`` and ``format_version``.

    Raises:
        DataError: if it is not JSON, of another kind, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); make it anew") from None
    if not isinstance(document, dict) or document.get("format") != kind:
        raise DataError(f"{path}: not a file of format {kind!r}")
    if document.get("format_version") != version:
        raise DataError(
            f"{path}: format_version is {document.get('format_version')!r}, this release reads "
            f"{version}; make it anew, or use the release that wrote it"
        )
    return document


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_lock(folder: Path) -> FileLock:
    """A context manager that waits for, then holds, the lock of an existing folder.

    The operating system releases the lock when a process dies, so nothing is ever left locked.
    """
    return FileLock(folder / ".lock")


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it.

    An interruption at any moment leaves the old file, or none, and never half a file. The temporary
    name keeps the suffix of ``path``, because some writers choose their format by it.

    Args:
        path: the file to make. Its folder must exist.
        write: called once with the temporary path.

    Raises:
        OSError: naming ``path``, if the disk is full, for example.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_atomic(target, lambda temporary: temporary.write_text("whole"))
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}"
        )
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes 0600, an ordinary file obeys the umask
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in DISK_ERRORS:  # the file that nobody misses has a name that says nothing
            error.filename = os.fspath(path)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_folder_atomic(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder beside ``folder``, then rename it.

    An interruption at any moment leaves no ``folder``; what it leaves besides is removed by the
    next call. Hold the :func:`folder_lock` of the parent meanwhile.

    Args:
        folder: to make. It must not exist, its parent must.
        write: called once with the temporary folder; it flushes its files to disk itself.

    Examples:
        >>> target = Path(tempfile.mkdtemp()) / "a"
        >>> write_folder_atomic(target, lambda part: write_text(part / "b.txt", "whole"))
        >>> (target / "b.txt").read_text()
        'whole'
    """
    prefix = f".{folder.name}-"
    for left in folder.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=".tmp"))
    try:
        write(part)
        part.chmod(0o777 & ~_umask())  # mkdtemp makes 0700, an ordinary folder obeys the umask
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # gone already if it was renamed


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented, key-ordered JSON with :func:`write_atomic`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write torch tensors as safetensors with :func:`write_atomic`.

    They may lie on any device and share their memory; what is no tensor is left out. Unlike
    ``safetensors.torch.save_file`` it says as an ``OSError`` that the disk is full.
    """
    # Not needed by those who only read a document.
    import torch
    from safetensors.torch import save

    content = save(
        {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor)
        }
    )

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`write_atomic`."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)
