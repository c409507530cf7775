"""The user's cache folder: what is stored between runs, from wherever they are started.

It has a folder for each kind: ``data/metaworld`` and ``data/halfcheetah`` (collected),
``data/d4rl`` (downloaded), ``models`` and ``embeddings``. All of it can be made or fetched again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import Timeout

from llmdpd_torchrl.utils.errors import ConfigError, notice
from llmdpd_torchrl.utils.files import folder_lock, make_writable_folder

CACHE_VARIABLE = "LLMDPD_CACHE"
"""Environment variable that names another cache folder."""


def cache_root() -> Path:
    """Return the cache folder, which may not exist yet.

    It is ``LLMDPD_CACHE`` if that is set, else ``llmdpd_torchrl`` in the platform's cache folder
    (``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux).

    Raises:
        ConfigError: if the user has no home folder and the variable is not set.
    """
    own = os.environ.get(CACHE_VARIABLE)
    try:
        if own:
            return Path(own).expanduser().absolute()
        return platformdirs.user_cache_path("llmdpd_torchrl", appauthor=False, opinion=False)
    except RuntimeError as error:
        raise ConfigError(
            f"there is no home folder for the cache: set {CACHE_VARIABLE} to a writable folder"
        ) from error


def used_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of the files in a folder; others may rename or remove them meanwhile."""
    total = 0
    for file in (Path(path), *Path(path).rglob("*")):
        with suppress(FileNotFoundError):
            status = file.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


@contextmanager
def locked_folder(
    folder: str | os.PathLike[str], what: str = "cache", setting: str = CACHE_VARIABLE
) -> Iterator[Path]:
    """Create a folder and let one process at a time change it; who has to wait gets a notice.

    Args:
        folder: in the cache or elsewhere.
        what: it is, for messages.
        setting: that names another one, for messages; in the cache it is ``LLMDPD_CACHE``.

    Raises:
        ConfigError: if it cannot be created or written.
    """
    folder = Path(folder)
    if folder.is_relative_to(cache_root()):
        setting = CACHE_VARIABLE
    lock = folder_lock(make_writable_folder(folder, what, setting))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice(f"another process is making what {folder} lacks: waiting for it")
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
