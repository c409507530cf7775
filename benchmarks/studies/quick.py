"""The ``quick`` preset with prompts and without: ``results/quick.json``.

Runs ``examples/train_metaworld.py`` once an arm, one after another, stores each arm's
``results.json`` in ``results/quick/``, and takes the figures from those files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, check_figures, write_figures, write_readme_table
from llmdpd_torchrl.evaluation.plots import plot_success_bars
from llmdpd_torchrl.evaluation.statistics import ResultsSummary

ROOT = Path(__file__).parents[2]
ARMS: dict[str, tuple[str, ...]] = {
    "quick-both-seed0": (),
    "quick-none-seed0": ("prompt=none",),
}


@dataclass
class Options:
    """This study has no settings."""


def read(name: str, file: str = "results") -> dict[str, Any]:
    """A stored file of an arm."""
    return json.loads((RESULTS / "quick" / f"{name}-{file}.json").read_text())


def figures() -> dict[str, float]:
    """All figures, from the stored files."""
    means = {}
    for arm in ARMS:
        summary = read(arm)["summary"]
        means[arm] = summary["seen"]["success_rate"], summary["unseen"]["success_rate"]
    seconds = sum(read("quick-both-seed0", "timings")["stage_seconds"].values())
    return {
        "seen_success": means["quick-both-seed0"][0],
        "seen_success_no_prompt": means["quick-none-seed0"][0],
        "unseen_success": means["quick-both-seed0"][1],
        "unseen_success_no_prompt": means["quick-none-seed0"][1],
        "wall_minutes": seconds / 60,
    }


def write_pages() -> None:
    """Rewrite the README's table and the plot beside it from the stored files."""
    summaries = {arm: ResultsSummary.from_dict(read(arm)["summary"]) for arm in ARMS}
    plot_success_bars(
        summaries["quick-both-seed0"],
        ROOT / "docs" / "quick_success.png",
        title="preset quick, text and one trajectory as prompts",
    )
    lines = ["| success, % (95 % interval) | text and trajectory | no prompt |", "|---|---:|---:|"]
    for group in ("seen", "unseen"):
        means = [getattr(summary, group) for summary in summaries.values()]
        cells = [
            f"{100 * m.success_rate:.0f} ({100 * m.low:.0f}-{100 * m.high:.0f})" for m in means
        ]
        lines.append(f"| {means[0].tasks} {group} tasks | {' | '.join(cells)} |")
    write_readme_table("studies quick", lines)


def run(options: Options) -> None:
    """Run what is missing in ``outputs/``, store the results and write the figures."""
    folder = RESULTS / "quick"
    folder.mkdir(parents=True, exist_ok=True)
    for name, overrides in ARMS.items():
        command = [sys.executable, "examples/train_metaworld.py", *overrides]
        subprocess.run(command, cwd=ROOT, check=True)
        for file in ("results", "timings"):
            shutil.copy(ROOT / "outputs" / name / f"{file}.json", folder / f"{name}-{file}.json")
    raw = {name: f"quick/{name}-results.json" for name in ARMS}
    write_figures("quick", figures(), raw, "python -m benchmarks.studies quick")
    write_pages()


def check() -> int:
    """Compare the committed figures with the stored files; returns the exit code."""
    return check_figures("quick", figures(), tolerance=1e-9)
