"""Where downloaded models and computed embeddings are kept, and how processes share the place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdpd_torchrl.utils.errors import PromptError
from llmdpd_torchrl.utils.files import folder_lock

__all__ = ["cache_root", "locked_folder"]


def cache_root() -> Path:
    """Return the folder for everything that can be fetched or computed again.

    ``LLMDPD_CACHE`` if it is set, else ``llmdpd_torchrl`` in the platform's cache folder:
    ``$XDG_CACHE_HOME`` or ``~/.cache`` (on macOS ``~/Library/Caches``, on Windows
    ``%LOCALAPPDATA%``). The folder may not exist yet.
    """
    own = os.environ.get("LLMDPD_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    if not shared and sys.platform == "win32":
        shared = os.environ.get("LOCALAPPDATA")
    if not shared and sys.platform == "darwin":
        shared = "~/Library/Caches"
    return Path(shared or "~/.cache").expanduser() / "llmdpd_torchrl"


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Make ``folder`` and hold its lock, so that one process at a time changes what is in it.

    Raises:
        PromptError: if the folder can not be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder_lock(folder)
        lock.acquire()
    except OSError as error:
        raise PromptError(
            f"can not write to the cache folder {folder} ({error.strerror or error}); "
            "set LLMDPD_CACHE to a writable folder"
        ) from error
    try:
        yield folder
    finally:
        lock.release()
