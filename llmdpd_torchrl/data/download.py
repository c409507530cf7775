"""Downloads of D4RL's files."""

from __future__ import annotations

import difflib
import os
import shutil
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS
from tqdm.auto import tqdm

from llmdpd_torchrl.utils.cache import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import write_atomic

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def fetch_d4rl(
    name: str, cache: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """The file of a D4RL dataset, downloaded if it is not in the cache.

    A file that was put into the cache by hand, under its name on the server or as ``NAME.hdf5``, is
    used as it is. The addresses are those in TorchRL. A failed download leaves nothing, and of
    several processes, one downloads and the others wait.

    Args:
        name: such as ``"hopper-medium-v2"``.
        cache: folder; default: ``data/d4rl`` in the user's cache.
        progress: whether to display a progress bar.

    Raises:
        ConfigError: if there is no dataset of this name, or the folder cannot be written.
        DataError: if it cannot be downloaded.
    """
    if name not in D4RL_DATASETS:
        near = difflib.get_close_matches(name, D4RL_DATASETS, n=4, cutoff=0.5)
        raise ConfigError(
            f"D4RL has no dataset {name!r}; it has {', '.join(near or list(D4RL_DATASETS)[:9])}, "
            "... (a file's path ends in .hdf5, an id of Minari's may begin with 'minari:')"
        )
    url = D4RL_DATASETS[name]
    folder = cache_root() / "data" / "d4rl" if cache is None else Path(cache)
    path, by_hand = folder / url.rpartition("/")[2], folder / f"{name}.hdf5"
    for found in (by_hand, path):
        if found.is_file():
            return found
    with locked_folder(folder, "download", "the argument cache"):
        if not path.is_file():  # another process may have downloaded it in the meantime
            write_atomic(path, lambda part: _download(url, part, path, progress))
    return path


def _download(url: str, part: Path, path: Path, progress: bool) -> None:
    """Download an HDF5 file to ``part``; ``path`` is where it will be."""
    by_hand = f"get it by other means and put it at {path}"
    # Not torch.hub's function, which has no timeout and accepts a file that is cut short.
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            bar: dict[str, Any] = {"desc": path.name, "disable": not progress}
            with tqdm.wrapattr(file, "write", total=size or None, **bar) as target:
                shutil.copyfileobj(response, target, 1 << 18)
    except (HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{path.name}: cannot download {url} ({reason}); {by_hand}") from None
    received = part.stat().st_size
    if size and received != size:
        raise DataError(
            f"{path.name}: {url} sent {received} of {size} bytes; try again, or {by_hand}"
        )
    with part.open("rb") as file:
        if file.read(len(_HDF5_SIGNATURE)) != _HDF5_SIGNATURE:
            raise DataError(f"{path.name}: {url} sent another file than expected; {by_hand}")
