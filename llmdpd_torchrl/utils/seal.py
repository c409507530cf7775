"""Folders whose every byte is covered by a SHA-256, and that hold no file that could be unpickled.

A folder is sealed by ``seal.json``, written last: the digest of every other file, and its own. So
one flipped byte anywhere, a file cut short, one that is missing or one too many is noticed, and a
folder without a seal was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llmdpd_torchrl.utils.errors import DamagedError, DataError
from llmdpd_torchrl.utils.files import file_sha256, sync

__all__ = ["SEAL_NAME", "check_kinds", "open_seal", "read_seal", "seal_folder"]

SEAL_NAME = "seal.json"


def seal_folder(
    folder: str | os.PathLike[str], kind: str, version: int, about: dict[str, Any]
) -> None:
    """Flush every file of ``folder`` to disk, then write ``seal.json``.

    Args:
        folder: with everything in it.
        kind: ``format`` of the folder.
        version: its ``format_version``.
        about: anything JSON can hold that belongs to the folder; :func:`open_seal` gives it back.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.json").write_text("[1]")
        >>> seal_folder(folder, "demo", 1, {"step": 10})
        >>> open_seal(folder, "demo", 1)
        {'step': 10}
        >>> _ = (folder / "a.json").write_text("[2]")
        >>> open_seal(folder, "demo", 1)
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.DamagedError: ...a.json: damaged ...
    """
    folder = Path(folder)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in _plain_files(folder)
    }
    document = {"format": kind, "format_version": version, "about": about, "files": files}
    document["seal"] = hashlib.sha256(_render(document)).hexdigest()
    (folder / SEAL_NAME).write_bytes(_render(document))
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def open_seal(
    folder: str | os.PathLike[str],
    kind: str,
    version: int,
    suffixes: Collection[str] = (".json", ".safetensors"),
) -> dict[str, Any]:
    """Check every byte of a sealed folder, and return what its seal says about it.

    Args:
        folder: made with :func:`seal_folder`.
        kind: the ``format`` it must have.
        version: the ``format_version`` it must have.
        suffixes: the kinds of files it may hold.

    Raises:
        DamagedError: naming the file that is damaged, missing, or of another kind. A file of
            another kind is refused before anything is read.
        DataError: if the folder is of another format or version.
    """
    folder = Path(folder)
    check_kinds(folder, suffixes)
    path = folder / SEAL_NAME
    document = read_seal(folder)
    if document["format"] != kind or document["format_version"] != version:
        raise DataError(
            f"{path}: is {document['format']!r}, version {document['format_version']!r}, this "
            f"release reads {kind!r}, version {version}; use the release that wrote it"
        )
    found, listed = set(_plain_files(folder)), document["files"]
    for name in sorted(found ^ set(listed)):
        problem = "is not listed" if name in found else "is missing, though it is listed"
        raise DamagedError(f"{folder / name}: {problem} in {SEAL_NAME}")
    for name, expected in listed.items():
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(
                f"{folder / name}: damaged ({size} bytes, {expected['bytes']} were written)"
            )
        if file_sha256(folder / name) != expected["sha256"]:
            raise DamagedError(
                f"{folder / name}: damaged (its SHA-256 is not the one in {SEAL_NAME})"
            )
    return document["about"]


def check_kinds(
    folder: str | os.PathLike[str],
    suffixes: Collection[str],
    *,
    links: bool = False,
    ignored: Collection[str] = (),
) -> None:
    """Refuse a folder that holds anything but plain files of certain kinds.

    Some libraries unpickle a file that lies in the right place of a tree. So a tree that holds one
    is refused as a whole, and nobody has to know which place that is.

    Args:
        folder: looked through to its depth.
        suffixes: of the files it may hold, such as ``".json"``.
        links: whether symbolic links to such files are allowed.
        ignored: names of folders, and of files without a suffix, that are passed over.

    Raises:
        DamagedError: naming the first file of another kind.
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


def read_seal(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a folder's seal; the other files are not looked at.

    Raises:
        DamagedError: if it is not, byte for byte, what :func:`seal_folder` wrote.
    """
    path = Path(folder) / SEAL_NAME
    if not path.is_file():
        raise DamagedError(f"{path}: missing, so {path.parent} was not written to its end")
    raw = path.read_bytes()
    try:
        document = json.loads(raw)
        seal = document.pop("seal")
        whole = _render({**document, "seal": seal}) == raw
        whole = whole and hashlib.sha256(_render(document)).hexdigest() == seal
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedError(f"{path}: damaged (it is not what was written)")
    return document


def _plain_files(folder: Path) -> list[str]:
    """Names of all files below ``folder`` but its seal, in order."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SEAL_NAME)


def _render(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
