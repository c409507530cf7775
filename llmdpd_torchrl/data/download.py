"""Downloads into a cache folder, each once."""

from __future__ import annotations

import difflib
import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import file_sha256, folder_lock, make_writable_folder, write_atomic

#: Default folder of D4RL's files.
D4RL_CACHE = Path("data_cache") / "d4rl"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def fetch_d4rl(
    name: str, cache: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """The file of a D4RL dataset, downloaded if it is not in the cache.

    A file that was put into the cache by hand, under its name on the server or as ``NAME.hdf5``, is
    used as it is. The addresses are those in TorchRL.

    Args:
        name: such as ``"hopper-medium-v2"``.
        cache: folder; default: :data:`D4RL_CACHE`.
        progress: whether to display a progress bar.

    Raises:
        ConfigError: if there is no dataset of this name.
        DataError: if it cannot be downloaded.
    """
    if name not in D4RL_DATASETS:
        near = difflib.get_close_matches(name, D4RL_DATASETS, n=4, cutoff=0.5)
        raise ConfigError(
            f"D4RL has no dataset {name!r}; it has {', '.join(near or list(D4RL_DATASETS)[:9])}, "
            "... (a file's path ends in .hdf5, an id of Minari's may begin with 'minari:')"
        )
    url = D4RL_DATASETS[name]
    folder = Path(D4RL_CACHE if cache is None else cache)
    by_hand = folder / f"{name}.hdf5"
    if by_hand.is_file():
        return by_hand
    return fetch_file(
        url, folder / url.rpartition("/")[2], signature=_HDF5_SIGNATURE, progress=progress
    )


def fetch_file(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    signature: bytes = b"",
    progress: bool = True,
) -> Path:
    """``path``, after downloading it from ``url`` if it does not exist.

    The file is complete or absent: a failed download leaves nothing. Of several processes, one
    downloads and the others wait.

    Args:
        url: to download from.
        path: of the file.
        sha256: the expected hash, if known; an existing file is checked, too.
        signature: the expected first bytes, which an error page of the server does not have.
        progress: whether to display a progress bar.

    Raises:
        ConfigError: if the folder cannot be written.
        DataError: if the download fails or the file is not the expected one.
    """
    path = Path(path)
    by_hand = f"get it by other means and put it at {path}"

    def download(part: Path) -> None:
        # Not torch.hub's function, which has no timeout and accepts a file that is cut short.
        try:
            with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
                size = int(response.headers.get("Content-Length") or 0)
                bar: dict[str, Any] = {"desc": path.name, "disable": not progress}
                with tqdm.wrapattr(file, "write", total=size or None, **bar) as target:
                    shutil.copyfileobj(response, target, 1 << 18)
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(f"{path.name}: cannot download {url} ({reason}); {by_hand}") from None
        received = part.stat().st_size
        if size and received != size:
            raise DataError(
                f"{path.name}: {url} sent {received} of {size} bytes; try again, or {by_hand}"
            )
        with part.open("rb") as file:
            is_expected = file.read(len(signature)) == signature
        if not is_expected or (sha256 is not None and file_sha256(part) != sha256):
            raise DataError(f"{path.name}: {url} sent another file than expected; {by_hand}")

    if not path.is_file():
        make_writable_folder(path.parent, "download", "the cache folder")
        with folder_lock(path.parent):
            if not path.is_file():  # another process may have downloaded it in the meantime
                write_atomic(path, download)
    if sha256 is not None and file_sha256(path) != sha256:
        raise DataError(f"{path}: its SHA-256 is not {sha256}; delete it to download it again")
    return path
