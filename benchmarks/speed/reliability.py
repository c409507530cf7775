"""What a training survives: kills at random moments, damaged checkpoints, wrong inputs.

``python -m benchmarks.speed.reliability`` kills ``examples/train_metaworld.py preset=smoke``, a
training alone and a collection of data 20 times each and compares what they leave, bit for bit,
with what was never disturbed; flips bits in checkpoints and cuts them; gives wrong inputs to every
entry; measures what saving costs at the default interval, and what a long training grows by. The
parts are those of ``tests/reliability``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, write_figures
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.objectives import LLMDPDLoss
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.policies.transforms import training_transforms
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.trainers import Checkpointing, OfflineTrainer, find_checkpoint
from tests.reliability import bad_inputs, endurance, entries, harness, short_training

COMMAND = "python -m benchmarks.speed.reliability"
PARTS = ("runs", "trainings", "collections", "checkpoints", "inputs", "saving", "long")


def kill_runs(folder: Path, kills: int) -> dict[str, Any]:
    """Kill the example again and again, and compare its data, policy, metrics and evaluation."""
    return _kill(
        harness.example_command,
        harness.example_differences,
        folder,
        kills,
        marker="out/environment.json",
        place=harness.example_stage,
    )


def kill_trainings(folder: Path, kills: int, updates: int) -> dict[str, Any]:
    """The same for a training alone, with all that a checkpoint has to bring back."""

    def command(where: Path) -> list[str]:
        return [*harness.SHORT_TRAINING, str(where), "--updates", str(updates)]

    return _kill(command, harness.differences, folder, kills)


def kill_collections(folder: Path, kills: int) -> dict[str, Any]:
    """The same for the collection of data."""

    def command(where: Path) -> list[str]:
        return [*harness.SHORT_COLLECTION, str(where)]

    return _kill(command, harness.differing_files, folder, kills)


def _kill(
    command: Callable[[Path], list[str]],
    differences: Callable[[Path, Path], list[str]],
    folder: Path,
    kills: int,
    *,
    marker: str | None = None,
    place: Callable[[Path], str] | None = None,
) -> dict[str, Any]:
    """Kill a command so many times, in as many rounds from nothing to its end as that takes.

    It is killed within a quarter of the time that it takes on this machine when nobody disturbs it.
    """
    expected = folder / "expected"
    first = harness.kill_until_done(
        command(expected),
        kills=0,
        longest=0,
        marker=None if marker is None else expected / marker,
    )
    if first.exit_code != 0:
        raise SystemExit(f"the undisturbed run failed:\n{first.output}")
    rounds: list[dict[str, Any]] = []
    while (left := kills - sum(each["tried"] for each in rounds)) and len(rounds) < kills:
        found = folder / f"round{len(rounds)}"
        result = harness.kill_until_done(
            command(found),
            kills=left,
            longest=first.seconds / 4,
            seed=len(rounds),
            marker=None if marker is None else found / marker,
            place=None if place is None else functools.partial(place, found),
        )
        if result.exit_code != 0:
            wrong = [f"exit code {result.exit_code}", result.output]
        else:
            wrong = differences(expected, found)
        rounds.append(
            {
                "tried": result.kills,
                # One run takes all kills of its round: it is what it should be, or none counts.
                "survived": 0 if wrong else result.kills,
                "moments_s": result.moments,
                "places": result.places,
                "notes": [line for line in result.notes if line.startswith("note: ")],
                "wrong": wrong,
            }
        )
    tried, survived = (sum(each[name] for each in rounds) for name in ("tried", "survived"))
    print(
        f"{folder.name}: {survived} of {tried} kills survived, in {len(rounds)} rounds", flush=True
    )
    about = {"tried": tried, "survived": survived}
    return {**about, "undisturbed_s": first.seconds, "rounds": rounds}


def damage_checkpoints(folder: Path, count: int) -> dict[str, Any]:
    """Flip bits in a checkpoint and cut its files; it must be named, and the one before taken."""
    short_training.train(folder, updates=40)
    checkpoints = folder / "checkpoints"
    before, newest = sorted(path for path in checkpoints.iterdir() if path.is_dir())[-2:]
    missed = []
    for file, intact, damaged in harness.damages(newest, count, seed=1):
        file.write_bytes(damaged)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            found = find_checkpoint(checkpoints)
        if found is None or found.path != before or str(file) not in said.getvalue():
            missed.append(str(file.relative_to(newest)))
        file.write_bytes(intact)
    return {"tried": count, "detected": count - len(missed), "missed": missed}


def give_bad_inputs() -> dict[str, Any]:
    """Give every wrong input to its entry."""
    unclear = []
    for case in tqdm(bad_inputs.CASES, desc="wrong inputs", leave=False):
        outcome = entries.call(case.entry, case.given)
        if not outcome.says(case.says):
            last = outcome.text.strip().splitlines()[-1:]
            unclear.append({"entry": case.entry, "given": str(case.given), "last_line": last})
    tried = len(bad_inputs.CASES)
    return {"tried": tried, "clear": tried - len(unclear), "unclear": unclear}


def time_saving(folder: Path, updates: int) -> dict[str, Any]:
    """Seconds that a training of the default size spends, and those of them in saving."""
    torch.set_num_threads(1)
    config = NetworkConfig(prompt="text", activation="silu", critic_hidden=(128, 128))
    table = torch.randn(2, config.text_dim)
    data = short_training.make_data()
    networks = make_networks(config, observations=data["observation"], text_embeddings=table)
    policy = LLMDPDPolicy.from_networks(config, networks)
    tables = PromptTables(table)
    loss = LLMDPDLoss(
        policy.prompt_network(tables),
        networks.actor,
        networks.qvalues,
        guidance="one_step",
        deactivate_vmap=True,
    )
    transforms = training_transforms(policy, tables)
    buffer = short_training.make_buffer(data, 256, transforms)
    trainer = OfflineTrainer(loss, buffer, total_updates=updates)
    checkpointing = Checkpointing(folder / "timed")
    checkpointing.register(trainer)
    seconds = []
    save = checkpointing.save

    def timed() -> bool:
        begun = time.perf_counter()
        saved = save()
        seconds.append(time.perf_counter() - begun)
        return saved

    checkpointing.save = timed  # type: ignore[method-assign]
    begun = time.perf_counter()
    trainer.train()
    total = time.perf_counter() - begun
    assert trainer.last_checkpoint is not None
    size = sum(file.stat().st_size for file in trainer.last_checkpoint.rglob("*") if file.is_file())
    return {
        "updates": updates,
        "every": checkpointing.every,
        "total_s": total,
        "saves_s": seconds,
        "bytes": size,
    }


def main() -> int:
    """Run all parts; with ``--check`` a short version that writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="a short version; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="keep the others as they were"
    )
    options = parser.parse_args()
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    short = options.check
    folder = Path(tempfile.mkdtemp())
    raw: dict[str, Any] = {}
    if set(options.only) < set(PARTS):
        raw = json.loads((RESULTS / "reliability_raw.json").read_text())
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "runs": lambda: kill_runs(folder / "runs", 2 if short else 20),
        "trainings": lambda: kill_trainings(
            folder / "trainings", 2 if short else 20, 310 if short else 1510
        ),
        "collections": lambda: kill_collections(folder / "collections", 1 if short else 20),
        "checkpoints": lambda: damage_checkpoints(folder / "c", 80 if short else 240),
        "inputs": give_bad_inputs,
        "saving": lambda: time_saving(folder, 1000 if short else 4000),
        "long": lambda: dataclasses.asdict(
            endurance.endure(folder / "long", 2000 if short else 20_000)
        ),
    }
    try:
        for part in options.only:
            raw[part] = measure[part]()
    finally:
        shutil.rmtree(folder)
    kinds = ("runs", "trainings", "collections")
    figures = {
        "kills_survived": sum(raw[kind]["survived"] for kind in kinds),
        "kills_tried": sum(raw[kind]["tried"] for kind in kinds),
        **{f"kills_survived_{kind}": raw[kind]["survived"] for kind in kinds},
        "damaged_checkpoints_detected": raw["checkpoints"]["detected"],
        "damaged_checkpoints_tried": raw["checkpoints"]["tried"],
        "bad_inputs_clear": raw["inputs"]["clear"],
        "bad_inputs_tried": raw["inputs"]["tried"],
        "checkpoint_time_share": sum(raw["saving"]["saves_s"]) / raw["saving"]["total_s"],
        "memory_growth_bytes_per_update": raw["long"]["memory_slope"],
        "metrics_bytes_per_row": raw["long"]["metrics_bytes"],
    }
    if not options.check:
        write_figures("reliability", figures, raw, COMMAND)
        return 0
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    survived = (
        figures["kills_survived"] == figures["kills_tried"]
        and figures["damaged_checkpoints_detected"] == figures["damaged_checkpoints_tried"]
        and not raw["inputs"]["unclear"]
        and figures["checkpoint_time_share"] <= 0.02
    )
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
