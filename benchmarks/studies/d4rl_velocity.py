"""Held-out speeds by prompt alone, on regenerated data: ``results/d4rl_velocity.json``.

A half cheetah's episodes at 24 target speeds; the policy is trained at 20 of them, by five seeds,
and asked for the other four, ten episodes each, by text, by one recorded episode, by both, by the
prompts of another of the four (2.5 m/s away), and by nothing. One policy a seed serves all these
arms, because training leaves prompts out at random. ``oracle`` is a policy of its own that is told
the speed as a number.
Scores are 0 at random actions' return and 100 at the behaviour's, task by task: no D4RL scores.
Intervals are Student's over the seeds. Always the last checkpoint.

What is trained (``outputs/``) or evaluated (``results/d4rl_velocity/*.csv``, a row an episode) is
not done again: a run that was stopped goes on.

    python -m benchmarks.studies.d4rl_velocity --data halfcheetah_vel.hdf5
    python -m benchmarks.studies.d4rl_velocity --check  # recompute the figures from the kept files
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import RESULTS, check_figures, write_figures, write_readme_table
from benchmarks.studies.locomotion import (
    COLUMNS,
    Training,
    arm_estimates,
    as_figures,
    budget,
    task_estimates,
    train_minutes,
)
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import write_text

KEEP = RESULTS / "d4rl_velocity"
LABEL = "speeds"
SEEDS = (0, 1, 2, 3, 4)
POLICIES = ("ours", "oracle")


def figures() -> dict[str, float]:
    """All figures, from the kept files."""
    found = as_figures(arm_estimates(KEEP, LABEL, SEEDS)) | budget(KEEP, [LABEL])
    for policy in POLICIES:
        names = [Training(LABEL, policy, seed, ()).name for seed in SEEDS]
        there = [name for name in names if (KEEP / f"{name}-training.json").exists()]
        if there:
            found[f"seeds_{policy}"] = len(there)
            found[f"train_minutes_{policy}"] = train_minutes(KEEP, there)
    return found


def table() -> Table:
    """A row a speed, and their mean."""
    rows = task_estimates(KEEP, LABEL, SEEDS)
    rows["mean of four speeds"] = arm_estimates(KEEP, LABEL, SEEDS)
    head = ("score (95 % interval over seeds)", *(name.replace("_", " ") for name in COLUMNS))
    return Table(
        head,
        [
            (task, *(by[arm].text() if arm in by else "-" for arm in COLUMNS))
            for task, by in rows.items()
        ],
    )


def main() -> int:
    """Run what is missing and write the figures, or check them against the kept files."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="a D4RL-layout .hdf5 file of speeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--episodes", type=int, default=10, help="of each held-out speed")
    parser.add_argument("--workers", type=int, default=1, help="processes of the evaluation")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--summarise", action="store_true", help="run nothing, write the figures")
    mode.add_argument("--check", action="store_true", help="recompute from the kept files")
    options = parser.parse_args()
    if options.check:
        return check_figures("d4rl_velocity", figures(), tolerance=1e-9)
    if not options.summarise:
        if options.data is None:
            parser.error("give --data, the file to train on")
        settings = (
            f"data.sources=[{options.data.resolve()}]",
            f"evaluation.workers={options.workers}",
        )
        try:
            for seed in options.seeds:
                for policy in options.policies:
                    Training(LABEL, policy, seed, settings).run(KEEP, options.episodes)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    raw = {path.stem: f"{KEEP.name}/{path.name}" for path in sorted(KEEP.glob("*.csv"))}
    name = options.data.name if options.data else "halfcheetah_vel.hdf5"
    write_figures(
        "d4rl_velocity", figures(), raw, f"python -m benchmarks.studies.d4rl_velocity --data {name}"
    )
    write_text(RESULTS / "d4rl_velocity.md", table().markdown() + "\n")
    write_readme_table("studies.d4rl_velocity", table().markdown().splitlines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
