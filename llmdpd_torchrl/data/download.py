"""Fetch a file once: from a cache folder, or from the network into it."""

from __future__ import annotations

import difflib
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import file_sha256, folder_lock, make_writable_folder, write_atomic

__all__ = ["D4RL_CACHE", "fetch_d4rl", "fetch_file"]

#: Where D4RL's files are kept unless told otherwise.
D4RL_CACHE = Path("data_cache") / "d4rl"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def fetch_d4rl(
    name: str, cache: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """The file of a D4RL dataset, downloaded if it is not in the cache yet.

    A file that was put into the cache by hand, under the name that it has on the server or as
    ``NAME.hdf5``, is taken as it is. The addresses are those that TorchRL lists.

    Args:
        name: such as ``"hopper-medium-v2"``.
        cache: folder; default: :data:`D4RL_CACHE`.
        progress: whether to show a bar.

    Raises:
        ConfigError: if there is no dataset of this name.
        DataError: if it can not be downloaded.
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
    """``path``, after downloading it from ``url`` if it is not there.

    What is there is there whole: a download that breaks off, or brings something else, leaves
    nothing. Processes that want one file at one time download it once.

    Args:
        url: to download from.
        path: of the file.
        sha256: what the file must hash to, where that is known; also checked if it is there.
        signature: what the file must begin with: a server's page of excuses does not.
        progress: whether to show a bar.

    Raises:
        ConfigError: if the folder can not be written.
        DataError: if the download fails or the file is not the right one.
    """
    path = Path(path)
    if not path.is_file():
        make_writable_folder(path.parent, "download", "the cache folder")
        with folder_lock(path.parent):
            if not path.is_file():  # another process may have brought it while this one waited
                write_atomic(
                    path, lambda part: _download(url, part, path, sha256, signature, progress)
                )
    if sha256 is not None and file_sha256(path) != sha256:
        raise DataError(f"{path}: its SHA-256 is not {sha256}; delete it to download it again")
    return path


def _download(
    url: str, part: Path, path: Path, sha256: str | None, signature: bytes, progress: bool
) -> None:
    by_hand = f"get it by other means and put it at {path}"
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(
                total=size or None,
                desc=path.name,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar:
                while block := response.read(1 << 18):
                    file.write(block)
                    bar.update(len(block))
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{path.name}: can not download {url} ({reason}); {by_hand}") from None
    received = part.stat().st_size
    if size and received != size:
        raise DataError(
            f"{path.name}: {url} sent {received} of {size} bytes; try again, or {by_hand}"
        )
    with part.open("rb") as file:
        right = file.read(len(signature)) == signature
    if not right or (sha256 is not None and file_sha256(part) != sha256):
        raise DataError(f"{path.name}: {url} sent something else than this file; {by_hand}")
