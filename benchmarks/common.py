"""The one format that all benchmarks write their results in."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdpd_torchrl.evaluation.results import git_revision
from llmdpd_torchrl.utils.files import write_json, write_text
from llmdpd_torchrl.utils.processes import available_cores

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a measurement ran on."""
    return {
        "cores": available_cores(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def write_figures(name: str, figures: Mapping[str, float], raw: Any, command: str) -> None:
    """Write ``results/NAME.json`` and beside it the raw measurements, and print the figures."""
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}_raw.json", raw)
    write_json(
        RESULTS / f"{name}.json",
        {
            "command": command,
            "commit": git_revision(),
            "machine": machine(),
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "figures": dict(figures),
            "raw": f"{name}_raw.json",
        },
    )
    for figure, value in figures.items():
        print(f"{figure}: {value:.4g}")


def check_figures(name: str, figures: Mapping[str, float], tolerance: float) -> int:
    """Compare a short run with the committed figures; return the exit code."""
    committed = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    code = 0
    for figure, value in figures.items():
        if figure not in committed:
            print(f"{figure}: {value:.4g}, not in the committed file")
            code = 1
            continue
        expected = committed[figure]
        fits = abs(value - expected) <= tolerance * abs(expected)
        print(f"{figure}: {value:.4g}, committed {expected:.4g}: {'ok' if fits else 'DIFFERS'}")
        code |= not fits
    if code:
        print(f"{name}: a figure differs by more than {tolerance:.0%}", file=sys.stderr)
    return int(code)


def parse_speed_options(doc: str | None) -> argparse.Namespace:
    """The command line of a benchmark of speed: ``check``, ``quick``, ``repeats``, ``device``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="short run against the committed file")
    mode.add_argument("--quick", action="store_true", help="a small grid; writes nothing")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu", help="cpu (the figures) or cuda")
    return parser.parse_args()


def write_speed(
    name: str,
    options: argparse.Namespace,
    figures: Mapping[str, float],
    raw: Any,
    plot: Callable[[Any, Path], None],
) -> None:
    """:func:`write_figures` and the plot of one device; a quick run only prints the figures."""
    if options.quick:
        for figure, value in figures.items():
            print(f"{figure}: {value:.4g}")
        return
    command = f"python -m benchmarks.speed.{name} --device {options.device}"
    name = name if options.device == "cpu" else f"{name}_{options.device}"
    write_figures(name, figures, raw, command)
    plot(raw, RESULTS / f"{name}.png")


def plot_sides(
    axis: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, rate: str
) -> None:
    """Draw ``rate`` of every side over ``key``, both logarithmic; the first row has all sides."""
    for side in rows[0]["sides"]:
        line = sorted((row[key], row["sides"][side][rate]) for row in rows if side in row["sides"])
        axis.plot(*zip(*line, strict=True), marker="o", label=side.replace("_", " "))
    unit = rate.removesuffix("_per_s")
    axis.set(xscale="log", yscale="log", xlabel=label, ylabel=f"{unit} a second, one thread")
    ticks = sorted({row[key] for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)


def write_readme_table(benchmark: str, lines: Sequence[str]) -> None:
    """Put a table between the README's marks of this benchmark."""
    start, end = f"<!-- written by python -m benchmarks.{benchmark} -->", "<!-- end -->"
    readme = RESULTS.parents[1] / "README.md"
    head, found, rest = readme.read_text().partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"README.md has no place for the table: {start} ... {end}")
    write_text(readme, "\n".join([head + start, *lines, end + tail]))
