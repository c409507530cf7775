"""Reading of recorded episodes: seconds for a file of 100 000 rows, memory for one of 4 GB.

``cold_100k_s`` is ``load_episodes(FILE)``, ``warm_100k_s`` the same with ``root`` once the file has
been converted, hashes compared, and ``h5py_100k_s`` reading the same arrays with h5py and nothing
else: medians over processes of their own, imports not counted, the file in the page cache.
``memory_samples_per_s`` and ``mapped_samples_per_s`` are batches of 256 of that file.

The large file is uncompressed and made here. It is not in the page cache when a process converts
it, samples batches from it and reports ``large_peak_anonymous_mb``, all that it holds, PyTorch
included. ``large_memory_limit_mb`` is a limit on anonymous memory and page cache together that the
kernel enforces meanwhile; without the right to set one, the figure is left out.

    python -m benchmarks.speed.d4rl_reader --data FILE  # the committed figures; makes one without
    python -m benchmarks.speed.d4rl_reader --check  # cold and warm, against the committed ones
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.common import check_figures, write_figures
from benchmarks.speed.memory import AnonymousPeak, enter_group, memory_group
from benchmarks.speed.timing import alternate
from llmdpd_torchrl.data import OfflineDataset, load_episodes

ROOT = Path(__file__).parents[2]
LIMIT = 1 << 30
SHAPES = {
    "observations": (11,),
    "actions": (3,),
    "rewards": (),
    "terminals": (),
    "timeouts": (),
    "next_observations": (11,),
}


def make_block(rows: int) -> dict[str, NDArray[Any]]:
    """Episodes of hopper's widths, of up to 1000 steps, that fall or time out."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(rows + 1, 11)).astype(np.float32)
    ends = np.cumsum(generator.integers(50, 1001, size=rows // 50 + 1)) - 1
    ends = np.append(ends[ends < rows - 1], rows - 1)
    end = np.isin(np.arange(rows), ends)
    fall = generator.random(rows) < 0.8
    return {
        "observations": states[:-1],
        "actions": generator.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": generator.normal(size=rows).astype(np.float32),
        "terminals": end & fall,
        "timeouts": end & ~fall,
        "next_observations": states[1:],
    }


def write_file(path: Path, rows: int, compression: str | None) -> None:
    """A file in D4RL's layout: one block of episodes over and over."""
    block = make_block(min(rows, 1 << 20))
    size = len(block["rewards"])
    with h5py.File(path, "w") as file:
        for key, shape in SHAPES.items():
            file.create_dataset(key, (rows, *shape), block[key].dtype, compression=compression)
        for start in tqdm(range(0, rows, size), desc="writing the file", delay=1):
            count = min(size, rows - start)
            for key, column in block.items():
                file[key][start : start + count] = column[:count]


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_process(function: str, *arguments: Any) -> Any:
    """Call a function of this file in a process of its own; what it returns is JSON."""
    code = (
        "import json, sys; from benchmarks.speed import d4rl_reader;"
        f"print(json.dumps(d4rl_reader.{function}(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps([str(a) for a in arguments])]
    process = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def time_cold(path: str) -> float:
    """Seconds to read a file into memory."""
    started = time.perf_counter()
    load_episodes(path, progress=False)
    return time.perf_counter() - started


def time_warm(path: str, root: str) -> float:
    """Seconds to map what was converted before."""
    started = time.perf_counter()
    load_episodes(path, root=root, progress=False)
    return time.perf_counter() - started


def time_h5py(path: str) -> float:
    """Seconds to read the arrays alone."""
    started = time.perf_counter()
    with h5py.File(path, "r") as file:
        for key in SHAPES:
            if key in file:
                file[key][()]
    return time.perf_counter() - started


def measure_small(path: Path, repeats: int) -> dict[str, Any]:
    """Seconds of reading, and of sampling a batch of 256."""
    with tempfile.TemporaryDirectory() as root:
        memory = load_episodes(path, progress=False)
        mapped = load_episodes(path, root=root, progress=False)
        if memory.manifest.data_hash != mapped.manifest.data_hash:
            raise RuntimeError(f"{path.name}: mapped data are not those in memory")
        seconds: dict[str, list[float]] = {"cold": [], "warm": [], "h5py": []}
        for _ in tqdm(range(repeats), desc="reading"):
            seconds["cold"].append(in_process("time_cold", path))
            seconds["warm"].append(in_process("time_warm", path, root))
            seconds["h5py"].append(in_process("time_h5py", path))
        buffers = {
            "memory": memory.replay_buffer(256, seed=0),
            "mapped": mapped.replay_buffer(256, seed=0),
        }
        sides = {name: buffer.sample for name, buffer in buffers.items()}
        return {
            "file": path.name,
            "rows": len(memory.transitions),
            "seconds": seconds,
            "sample_seconds": alternate(sides, repeats=repeats),
        }


def convert_large(path: str, root: str, group: str, seconds: float = 10.0) -> dict[str, Any]:
    """Convert a file, sample from it and report the memory, in a group if one is named."""
    limited = bool(group) and enter_group(Path(group))
    with AnonymousPeak() as peak:
        started = time.perf_counter()
        data = load_episodes(path, root=root)
        converted = time.perf_counter() - started
        after_conversion = peak.bytes
        samples = time_samples(data, seconds)
    return {
        "limit_bytes": LIMIT if limited else None,
        "rows": len(data.transitions),
        "episodes": len(data.lengths),
        "column_bytes": sum(c.nbytes for c in data.transitions.values(True, True)),
        "conversion_seconds": converted,
        "conversion_peak_anonymous_bytes": after_conversion,
        "peak_anonymous_bytes": peak.bytes,
        "samples_per_s": samples,
    }


def time_samples(data: OfflineDataset, seconds: float) -> float:
    """Batches of 256 a second."""
    buffer = data.replay_buffer(256, seed=0)
    buffer.sample()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        buffer.sample()
        count += 1
    return count / passed


def measure_large(gigabytes: float) -> dict[str, Any]:
    """A file of this size, made, converted and deleted again."""
    width = sum(4 * int(np.prod(SHAPES[key])) for key in SHAPES if key[0] != "t") + 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.hdf5"
        write_file(path, int(gigabytes * 1e9 / width), compression=None)
        forget(path)
        size = path.stat().st_size
        with memory_group(LIMIT) as group:
            measured = in_process("convert_large", path, Path(folder) / "root", group or "")
        return measured | {"file_bytes": size}


def figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """All figures of the measurements that there are."""
    small = raw["small"]
    found = {f"{name}_100k_s": statistics.median(s) for name, s in small["seconds"].items()}
    for name, seconds in small["sample_seconds"].items():
        found[f"{name}_samples_per_s"] = 1 / statistics.median(seconds)
    if large := raw.get("large"):
        found |= {
            "large_file_gb": large["file_bytes"] / 1e9,
            "large_peak_anonymous_mb": large["peak_anonymous_bytes"] / 1e6,
            "large_rows_per_s": large["rows"] / large["conversion_seconds"],
            "large_samples_per_s": large["samples_per_s"],
        }
        if large["limit_bytes"]:
            found["large_memory_limit_mb"] = large["limit_bytes"] / 1e6
    return found


def main() -> int:
    """Measure and write, or measure shortly and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="a file in D4RL's layout, of about 100 000 rows")
    parser.add_argument("--check", action="store_true", help="short run against the committed file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--large-gb", type=float, default=4.0, help="size of the large file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.data
        if path is None:
            path = Path(folder) / "hopper_shape.hdf5"
            write_file(path, 100_000, compression="gzip")
        raw: dict[str, Any] = {
            "small": measure_small(path, 3 if options.check else options.repeats)
        }
    if options.check:
        found = figures(raw)
        found = {key: found[key] for key in ("cold_100k_s", "warm_100k_s")}
        return check_figures("d4rl_reader", found, tolerance=1.0)
    raw["large"] = measure_large(options.large_gb)
    data = "" if options.data is None else f" --data {options.data.name}"
    write_figures("d4rl_reader", figures(raw), raw, f"python -m benchmarks.speed.d4rl_reader{data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
