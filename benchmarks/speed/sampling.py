"""Actions a second: ``DiffusionActor`` against the textbook's sampler, both without gradients.

Both draw one action per observation of Meta-World's size through all K reverse steps, width 256, on
one thread: ours as a TensorDict module, as a rollout calls it. ``actions_per_s_vs_textbook`` is the
ratio at batch 256 and K = 5 with the same sampler (DDPM), ``..._batch_1`` the same for one
observation at a time, and ``..._compiled`` with the inner module compiled.

    python -m benchmarks.speed.sampling  # all figures and the plot, about ten minutes
    python -m benchmarks.speed.sampling --quick  # the base points, all samplers; writes nothing
    python -m benchmarks.speed.sampling --check  # the base points, compared with the figures
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from benchmarks.common import check_figures, parse_speed_options, plot_sides, write_speed
from benchmarks.speed.textbook import DiffusionPolicy
from benchmarks.speed.timing import alternate, keep_freed_memory, speedup, spread, threads
from llmdpd_torchrl.evaluation.plots import save_figure
from llmdpd_torchrl.modules import SAMPLERS, DiffusionActor

OBSERVATION_DIM, ACTION_DIM = 39, 4


@dataclass(frozen=True)
class Point:
    """Where is measured; the defaults are the base point."""

    batch: int = 256
    num_steps: int = 5
    threads: int = 1
    width: int = 256
    device: str = "cpu"


def textbook_side(point: Point) -> Callable[[], Any]:
    """The textbook's chain."""
    policy = DiffusionPolicy(OBSERVATION_DIM, ACTION_DIM, point.num_steps, point.width)
    policy.to(point.device)
    observation = torch.randn(point.batch, OBSERVATION_DIM, device=point.device)
    return torch.no_grad()(lambda: policy.sample(observation))


def our_side(point: Point, sampler: str, *, compiled: bool = False) -> Callable[[], Any]:
    """A stochastic call of our actor with ``sampler``."""
    actor = DiffusionActor(
        ACTION_DIM,
        OBSERVATION_DIM,
        hidden=(point.width,) * 3,
        num_steps=point.num_steps,
        sampler=sampler,
        in_keys=["observation"],
    ).to(point.device)
    if compiled:
        actor.module.compile()
    data = TensorDict(
        {"observation": torch.randn(point.batch, OBSERVATION_DIM)}, batch_size=[point.batch]
    ).to(point.device)
    return torch.no_grad()(lambda: actor(data))


def measure(
    point: Point,
    samplers: Sequence[str],
    repeats: int,
    *,
    compiled: bool = False,
    slice_seconds: float = 0.3,
) -> dict[str, Any]:
    """All sides at one point."""
    with threads(point.threads):
        sides = {"textbook": textbook_side(point)}
        sides |= {sampler: our_side(point, sampler) for sampler in samplers}
        if compiled:
            sides["ddpm_compiled"] = our_side(point, "ddpm", compiled=True)
        times = alternate(sides, repeats=repeats, slice_seconds=slice_seconds)
    rows: dict[str, Any] = {}
    for name, seconds in times.items():
        rows[name] = spread(seconds)
        rows[name]["actions_per_s"] = point.batch / rows[name]["median"]
        rows[name]["vs_textbook"] = speedup(times["textbook"], seconds)
    return {**asdict(point), "sides": rows}


def grid(device: str, *, quick: bool) -> list[Point]:
    """The base point, the same for one observation, then batch sizes and steps."""
    base = Point(device=device)
    points = [base, replace(base, batch=1)]
    if not quick:
        points += [replace(base, batch=size) for size in (16, 64, 1024, 4096)]
        points += [
            replace(base, batch=size, num_steps=steps)
            for size in (1, 256)
            for steps in (10, 20, 50)
        ]
    return points


def run(points: list[Point], repeats: int, *, compiled: bool) -> list[dict[str, Any]]:
    """Measure the grid; the first two points are also compiled."""
    rows = []
    for number, point in enumerate(tqdm(points, desc="sampling", unit="point")):
        rows.append(measure(point, tuple(SAMPLERS), repeats, compiled=compiled and number < 2))
    return rows


def figures(raw: list[dict[str, Any]]) -> dict[str, float]:
    """The figures, from the first two points."""
    found = {}
    for row, suffix in zip(raw, ("", "_batch_1"), strict=False):
        for side, kind in (("ddpm", ""), ("ddpm_compiled", "_compiled")):
            if side in row["sides"]:
                value = row["sides"][side]["vs_textbook"]
                found[f"actions_per_s_vs_textbook{kind}{suffix}"] = value
    return found


def plot(raw: list[dict[str, Any]], path: Path) -> None:
    """Actions a second over the batch and over K."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, key, fixed, label in zip(
        figure.subplots(1, 2), ("batch", "num_steps"), ("num_steps", "batch"), ("batch", "K"),
        strict=True,
    ):  # fmt: skip
        rows = [row for row in raw if row[fixed] == raw[0][fixed]]
        plot_sides(axis, rows, key, label, "actions_per_s")
        axis.legend()
    save_figure(figure, path)


def main() -> int:
    """Measure and write, or measure shortly and print or compare."""
    options = parse_speed_options(__doc__)
    keep_freed_memory()
    points = grid(options.device, quick=options.quick or options.check)
    if options.check:
        found = figures(run(points, 5, compiled=False))
        return check_figures("sampling", found, tolerance=0.3)
    raw = run(points, options.repeats, compiled=not options.quick)
    write_speed("sampling", options, figures(raw), raw, plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
