"""Atomic writes of files and folders, locks, and checksum manifests."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import DISK_ERRORS, ConfigError, DamagedError, DataError

CHECKSUMS = "checksums.sha256"
"""Name of a folder's checksum manifest, see :func:`write_checksums`."""


def make_writable_folder(folder: str | os.PathLike[str], what: str, setting: str) -> Path:
    """Create ``folder`` if it is missing; a ConfigError names ``what`` it is of and its setting."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create the {what} folder {folder} ({error.strerror}); set {setting} to a "
            "writable one"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the {what} folder {folder} is not writable; set {setting} to another")
    return folder


def read_document(path: Path, kind: str, *versions: int) -> dict[str, Any]:
    """Read a JSON file whose ``format`` must be this, and ``format_version`` one of these."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); create it again") from None
    if not isinstance(document, dict) or document.get("format") != kind:
        raise DataError(f"{path}: not a file of format {kind!r}")
    if document.get("format_version") not in versions:
        raise DataError(
            f"{path}: format_version is {document.get('format_version')!r}, this release reads "
            f"{' and '.join(map(str, versions))}; create it again, or use the release that wrote it"
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
    """The lock of an existing folder, which the system releases when the process ends, however."""
    return FileLock(folder / ".lock")


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    is_windows = platform.system() == "Windows"
    if is_windows and os.path.isdir(path):
        return  # a folder cannot be opened there
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    An interruption leaves the old file, or none, never a partial one. The temporary name keeps the
    suffix of ``path``, by which some writers choose their format. An ``OSError`` of the disk names
    ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in DISK_ERRORS:  # the temporary name would not help the user
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomic(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder and flush its files, then rename it to ``folder``.

    An interruption leaves no partial ``folder``; temporary folders that it leaves behind are
    removed by the next call. Hold the :func:`folder_lock` of the parent during the call.
    """
    prefix = f".{folder.name}-"
    for left in folder.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        shutil.rmtree(left)
    part, replaced = (folder.with_name(f"{prefix}{name}.tmp") for name in ("part", "replaced"))
    try:
        part.mkdir()
        write(part)
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(part, folder)
        sync(folder.parent)
    finally:
        for left in (part, replaced):
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented, key-ordered JSON with :func:`write_atomic`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write torch tensors as safetensors with :func:`write_atomic`.

    Tensors may be on any device and share memory; other values are left out. Unlike
    ``safetensors.torch.save_file``, a full disk raises an ``OSError``.
    """
    # Imported here: most users of this module need no torch.
    import torch
    from safetensors.torch import save

    content = save(
        {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor)
        }
    )
    write_bytes(path, content)


def check_tensors(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str, by: str) -> None:
    """Raise a DataError that names the first tensor whose name or shape is not wanted.

    ``where`` and ``by`` are what the two state_dicts are called in its message.
    """
    for name in sorted(wanted.keys() | found.keys()):
        is_now, must_be = (
            list(state[name].shape) if name in state else "nothing" for state in (found, wanted)
        )
        if is_now != must_be:
            raise DataError(f"{where}: {name} is {is_now}, {by} asks for {must_be}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`write_atomic`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` with :func:`write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_checksums(folder: Path) -> None:
    """Write a folder's checksum manifest, then flush all its files to disk.

    The manifest lists the SHA-256 of every other file in the format of ``sha256sum``; its last
    line, a comment, is the SHA-256 of the lines above it.
    """
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in _file_names(folder)]
    body = "".join(lines).encode()
    (folder / CHECKSUMS).write_bytes(body + _own_line(body))
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def verify_checksums(folder: Path, suffixes: Collection[str], *, progress: bool = False) -> None:
    """Check every byte of a folder against its manifest, and before that the files' suffixes.

    A DamagedError names the first file that is damaged, missing, unlisted or of another kind.
    """
    check_kinds(folder, {*suffixes, Path(CHECKSUMS).suffix})
    path = folder / CHECKSUMS
    if not path.is_file():
        raise DamagedError(f"{path}: missing, so {folder} was not completely written")
    *lines, own = path.read_bytes().splitlines(keepends=True) or [b""]
    if own != _own_line(b"".join(lines)):
        raise DamagedError(f"{path}: damaged (it is not what was written)")
    split = (line.decode().rstrip("\n").split("  ", 1) for line in lines)
    listed = {name: digest for digest, name in split}
    found = set(_file_names(folder))
    for name in sorted(found ^ set(listed)):
        problem = "is not listed" if name in found else "is missing, though it is listed"
        raise DamagedError(f"{folder / name}: {problem} in {CHECKSUMS}")
    bar = tqdm(listed.items(), desc="verifying", unit="file", delay=1, disable=not progress)
    for name, digest in bar:
        if file_sha256(folder / name) != digest:
            raise DamagedError(f"{folder / name}: damaged (its SHA-256 is not that in {CHECKSUMS})")


def _file_names(folder: Path) -> list[str]:
    """Relative paths of all files but the manifest, sorted."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != CHECKSUMS)


def _own_line(body: bytes) -> bytes:
    return f"# {hashlib.sha256(body).hexdigest()}\n".encode()


def check_kinds(
    folder: str | os.PathLike[str],
    suffixes: Collection[str],
    *,
    links: bool = False,
    ignored: Collection[str] = (),
) -> None:
    """Refuse a folder that holds anything but plain files of some suffixes, such as ``".json"``.

    Some libraries unpickle certain files of a folder. Refusing every pickle by its name keeps the
    check independent of which files these are.

    With ``links``, files may be symbolic links; ``ignored`` are names of folders and files.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ignored]
        for name in sorted([*folders, *files]):
            path = Path(root, name)
            if path.is_symlink() and (name in folders or not links):
                raise DamagedError(f"{path}: a symbolic link, which does not belong here")
            if name in files and name not in ignored and path.suffix not in suffixes:
                raise DamagedError(
                    f"{path}: a file of this kind does not belong here (only "
                    f"{', '.join(sorted(suffixes))}); nothing was read: delete it if you do not "
                    "know where it comes from"
                )
