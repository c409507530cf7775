"""Kill a command at random moments until it has got to its end, and compare what it leaves."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

__all__ = [
    "Killed",
    "damages",
    "differences",
    "differing_files",
    "example_command",
    "example_differences",
    "example_stage",
    "kill_until_done",
    "small_files",
]

SHORT_TRAINING = [sys.executable, str(Path(__file__).parent / "short_training.py")]
SHORT_COLLECTION = [sys.executable, str(Path(__file__).parent / "short_collection.py")]
#: All of a run but its film and report, as a person starts it; see :func:`example_command`.
_EXAMPLE = [
    sys.executable,
    str(Path(__file__).parents[2] / "examples" / "train_metaworld.py"),
    *("preset=smoke", "until=evaluate", "progress=false", "resume=auto"),
    *("trainer.total_updates=600", "trainer.save_every=20"),
]


def example_command(folder: Path) -> list[str]:
    """The example, with its data and its output in ``folder``."""
    return [*_EXAMPLE, f"output_dir={folder}/out", f"data.folder={folder}/data"]


def example_stage(folder: Path) -> str:
    """The stage that the example has come to."""
    stages = {
        "collect": "data/support/manifest.json",
        "train": "out/checkpoint/config.json",
        "evaluate": "out/results.json",
    }
    return next((name for name, file in stages.items() if not (folder / file).exists()), "end")


@dataclass
class Killed:
    """What became of a command that was killed again and again.

    Attributes:
        kills: how often it was.
        moments: seconds from when it had started to each kill.
        places: where it was then.
        exit_code: of the last run, which nobody killed.
        output: what that run wrote to stderr.
        seconds: that it took from when it had started.
        notes: what the others did, in lines.
    """

    kills: int = 0
    moments: list[float] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    exit_code: int | None = None
    output: str = ""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def kill_until_done(
    command: Sequence[str],
    *,
    kills: int,
    longest: float,
    seed: int = 0,
    marker: Path | None = None,
    place: Callable[[], str] | None = None,
    finish: bool = True,
) -> Killed:
    """Run a command that continues what it finds, and kill it ``kills`` times with SIGKILL.

    Args:
        command: to be run again and again.
        kills: how often to kill it; fewer if it gets to its end before.
        longest: seconds that it gets at most before it is killed.
        seed: of the moments.
        marker: a file that it writes when the interesting part begins; default: it prints
            ``started`` then.
        place: says where it is.
        finish: whether to let it run to its end at last.
    """
    moments = random.Random(seed)
    result = Killed()
    while result.kills < kills:
        process = _start(command, marker)
        moment = moments.uniform(0, longest)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        ended = process.poll() is not None
        where = place() if place else "?"
        process.kill()
        _, errors = process.communicate()
        if ended:
            result.exit_code, result.output = process.returncode, errors
            return result
        result.notes += errors.splitlines()
        result.kills += 1
        result.moments.append(round(moment, 3))
        result.places.append(where)
    if finish:
        process = _start(command, marker)
        begun = time.monotonic()
        _, result.output = process.communicate()
        result.exit_code, result.seconds = process.returncode, time.monotonic() - begun
    return result


def _start(command: Sequence[str], marker: Path | None) -> subprocess.Popen[str]:
    """Start a command, and wait until its interesting part begins, or it ends."""
    before = _written(marker)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if marker is None:
        process.stdout.readline()
    while marker is not None and _written(marker) == before and process.poll() is None:
        time.sleep(0.01)
    return process


def _written(file: Path | None) -> int | None:
    return file.stat().st_mtime_ns if file is not None and file.exists() else None


def example_differences(expected: Path, found: Path) -> list[str]:
    """What differs between the data, policies, metrics and evaluations of two of the example."""
    wrong = []
    for folder in ("data/train", "data/support"):
        names = differing_files(expected / folder, found / folder)
        wrong += [f"{folder}/{name}" for name in names]
    for name in ("metrics.csv", "checkpoint/model.safetensors", "checkpoint/config.json"):
        if (expected / "out" / name).read_bytes() != (found / "out" / name).read_bytes():
            wrong.append(name)
    ours, theirs = (
        json.loads((folder / "out" / "results.json").read_text()) for folder in (expected, found)
    )
    keys = (ours.keys() | theirs.keys()) - {"command"}  # which names the folder
    return wrong + [f"results.json: {key}" for key in keys if ours.get(key) != theirs.get(key)]


def differences(expected: Path, found: Path) -> list[str]:
    """What differs between the results of two trainings, in words; empty if not one bit does."""
    wrong = []
    for name in ("metrics.csv", "final.json", "best/config.json"):
        if (expected / name).read_bytes() != (found / name).read_bytes():
            wrong.append(name)
    for name in ("final.safetensors", "best/model.safetensors"):
        ours, theirs = load_file(expected / name), load_file(found / name)
        if ours.keys() != theirs.keys():
            wrong.append(f"{name}: {sorted(ours.keys() ^ theirs.keys())}")
            continue
        wrong += [
            f"{name}: {key}"
            for key, value in ours.items()
            if value.dtype != theirs[key].dtype or not np.array_equal(value, theirs[key])
        ]
    return wrong


def differing_files(expected: Path, found: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ in a byte."""
    names = {
        path.name for folder in (expected, found) for path in folder.iterdir() if path.is_file()
    }
    return sorted(
        name
        for name in names
        if not (expected / name).is_file()
        or not (found / name).is_file()
        or (expected / name).read_bytes() != (found / name).read_bytes()
    )


def damages(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, bytes, bytes]]:
    """So many single flipped bits and cut files, over all files below a folder in turn.

    Yields:
        a file, what it holds, and what it shall hold; nothing is written here.
    """
    chance = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        file = files[number % len(files)]
        whole = file.read_bytes()
        if number // len(files) % 4 == 3:
            yield file, whole, whole[: chance.randrange(len(whole))]
        else:
            place = chance.randrange(len(whole))
            flipped = bytes([whole[place] ^ (1 << chance.randrange(8))])
            yield file, whole, whole[:place] + flipped + whole[place + 1 :]


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
