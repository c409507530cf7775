"""Collection against the raw simulator, both on all cores, alternating in one run.

``steps_per_s_vs_raw`` is the ratio of steps a second and core: the collection with experts, noise,
recording, files and manifest, over a bare loop of ``reset`` and ``step`` on the same episodes with
the actions read from memory. ``episode_success`` is that of all 50 tasks x 30 episodes.

    python -m benchmarks.speed.collection  # the committed figures, about six minutes
    python -m benchmarks.speed.collection --check  # a short run, compared with them
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.common import check_figures, write_figures
from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data.manifest import Manifest
from llmdpd_torchrl.envs.metaworld import make_simulator, reset_simulator
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS
from llmdpd_torchrl.utils.processes import available_cores, run_jobs


def replay(path: str, seeds: Sequence[int], task: str) -> Iterator[int]:
    """Step the bare simulator through one task's recorded episodes; yields their lengths."""
    arrays = load_file(path)
    actions, ends = arrays["action"], np.flatnonzero(arrays["truncated"]) + 1
    simulator = make_simulator(task)
    for seed, episode in zip(seeds, np.split(actions, ends[:-1]), strict=True):
        reset_simulator(simulator, seed=seed)
        for action in episode:
            simulator.step(action)
        yield len(episode)
    simulator.close()


def measure(tasks: Sequence[str], episodes: int) -> dict[str, Any]:
    """One collection and one replay of the same episodes, each with start-up and all."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        manifest = collect_metaworld(name, tasks, CollectionSettings(episodes_per_task=episodes))
        collected = time.perf_counter() - started
        jobs = [
            (str(Path(name) / record.file), [e["seed"] for e in record.episodes], task)
            for task, record in manifest.tasks.items()
        ]
        started = time.perf_counter()
        counts = run_jobs(replay, jobs, episodes=len(tasks) * episodes, description="raw loop")
        raw = time.perf_counter() - started
        return {
            "steps": sum(map(sum, counts)),
            "collection_seconds": collected,
            "raw_seconds": raw,
            "ratio": raw / collected,
            **_successes(manifest),
        }


def _successes(manifest: Manifest) -> dict[str, Any]:
    return {
        "episode_success": manifest.episode_success,
        "by_task": {name: record.success_rate for name, record in manifest.tasks.items()},
        "data_hash": manifest.data_hash,
    }


def main() -> int:
    """Measure and write, or measure shortly and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="short run against the committed file")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.check:
        run = measure(METAWORLD_TASKS.names[::10], 10)
        return check_figures("collection", {"steps_per_s_vs_raw": run["ratio"]}, tolerance=0.3)
    runs = [measure(METAWORLD_TASKS.names, 30) for _ in range(options.repeats)]
    rates = [run["steps"] / run["collection_seconds"] / available_cores() for run in runs]
    figures = {
        "steps_per_s_vs_raw": statistics.median(run["ratio"] for run in runs),
        "episode_success": runs[0]["episode_success"],
        "steps_per_s_per_core": statistics.median(rates),
        "collection_seconds": statistics.median(run["collection_seconds"] for run in runs),
    }
    write_figures("collection", figures, runs, "python -m benchmarks.speed.collection")
    return 0


if __name__ == "__main__":
    sys.exit(main())
