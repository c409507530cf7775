"""Levels of skill, on regenerated data in D4RL's layout: ``results/d4rl_levels.json``.

*Shift.* By environment, the policy is trained on the levels medium-replay and medium together and
asked for the expert's, which it never trains on, by text, one expert episode, both, the prompts of
another level, or nothing. ``oracle`` is told the level's mean score as a number.

*Files.* Each file alone, without prompts: Diffusion-QL with this library's defaults. That is the
usual per-file table.

Every policy is the last checkpoint, of one seed, 3000 updates and ten episodes an arm unless the
options say otherwise. The files are regenerated, so that no score here is a D4RL score.

What is trained (``outputs/``) or evaluated (``results/d4rl_levels/*.csv``, a row an episode) is not
done again: a run that was stopped goes on.

    python -m benchmarks.studies.d4rl_levels --data FOLDER  # with hopper_medium.hdf5, ...
    python -m benchmarks.studies.d4rl_levels --check  # recompute the figures from the kept files
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import RESULTS, check_figures, write_figures
from benchmarks.studies.locomotion import COLUMNS, Training, arm_estimates, as_figures, budget
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.evaluation.statistics import Estimate
from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import write_text

KEEP = RESULTS / "d4rl_levels"
ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d")
LEVELS = ("medium_replay", "medium", "medium_expert")


def trainings(data: Path, seeds: list[int], updates: int) -> list[Training]:
    """All policies, the first seed of each before the second of any."""
    settings = (f"trainer.total_updates={updates}", "evaluation.workers=1")

    def sources(*names: str) -> str:
        return ",".join(str((data / f"{name}.hdf5").resolve()) for name in names)

    found = []
    for seed in seeds:
        for environment in ENVIRONMENTS:
            own = sources(f"{environment}_medium_replay", f"{environment}_medium")
            shift = (
                *settings,
                f"data.sources=[{own}]",
                f"data.held_out=[{sources(f'{environment}_expert')}]",
            )
            found += [
                Training(f"shift-{environment}", policy, seed, shift)
                for policy in ("ours", "oracle")
            ]
        for environment in ENVIRONMENTS:
            found += [
                Training(
                    f"file-{environment}_{level}", "unprompted", seed,
                    (*settings, "prompt=none", "evaluation.control=none",
                     f"data.sources=[{sources(f'{environment}_{level}')}]"),
                )
                for level in LEVELS
            ]  # fmt: skip
    return found


def estimates() -> dict[str, dict[str, Estimate]]:
    """By what was trained on, then by arm."""
    names = [path.stem.rpartition("-seed") for path in KEEP.glob("*.csv")]
    labels = sorted({head.rpartition("-")[0] for head, _, _ in names})
    seeds = sorted({int(tail.partition("-")[0]) for _, _, tail in names})
    return {label: arm_estimates(KEEP, label, seeds) for label in labels}


def figures() -> dict[str, float]:
    """All figures, from the kept files."""
    found = budget(KEEP, ("shift", "file"))
    for label, arms in estimates().items():
        found |= as_figures(arms, f"{label.replace('-', '_')}_")
    return found


def tables() -> list[Table]:
    """The shift and the files."""
    found = estimates()
    shift = [
        (label.partition("-")[2], *(arms[a].text() if a in arms else "-" for a in COLUMNS))
        for label, arms in found.items()
        if label.startswith("shift")
    ]
    files = [
        (label.partition("-")[2], arms["unprompted"].text())
        for label, arms in found.items()
        if label.startswith("file")
    ]
    head = ("asked for the expert", *(name.replace("_", " ") for name in COLUMNS))
    return [Table(head, shift), Table(("file", "score"), files)]


def main() -> int:
    """Run what is missing and write the figures, or check them against the kept files."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of the files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--episodes", type=int, default=10, help="of each arm")
    parser.add_argument("--only", default="", help="what a policy's name must contain")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--summarise", action="store_true", help="run nothing, write the figures")
    mode.add_argument("--check", action="store_true", help="recompute from the kept files")
    options = parser.parse_args()
    if options.check:
        return check_figures("d4rl_levels", figures(), tolerance=1e-9)
    if not options.summarise:
        if options.data is None:
            parser.error("give --data, the folder of the files")
        try:
            for training in trainings(options.data, options.seeds, options.updates):
                if options.only in training.name:
                    training.run(KEEP, options.episodes)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    raw = {path.stem: f"{KEEP.name}/{path.name}" for path in sorted(KEEP.glob("*.csv"))}
    command = "python -m benchmarks.studies.d4rl_levels --data FOLDER"
    write_figures("d4rl_levels", figures(), raw, command)
    text = "\n\n".join(table.markdown() for table in tables())
    write_text(RESULTS / "d4rl_levels.md", text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
