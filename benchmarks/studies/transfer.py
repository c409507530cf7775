"""Transfer matrix: retrieve and play on every task, with the demonstration of every task.

    python -m benchmarks.studies.transfer
    python -m benchmarks.studies.transfer 'tasks=[reach-v3,push-v3]' episodes=2 store=FOLDER

The demonstrations and goals are those of seed 0 of the study ``unseen_all``. ``transfer.csv`` has a
row a pair: whose demonstration, on which task, how many of how many episodes were successful; a
pair that it has is not run again, and the same command resumes. ``transfer.png`` is its picture,
``transfer.md`` the page with it.
Further settings: ``workers=N``, processes, by default one a core; ``data=PATH``, by default in the
user's cache.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmarks.common import RESULTS, write_figures
from benchmarks.studies.folds import chosen_folds
from benchmarks.studies.jobs import Job, Place
from benchmarks.studies.options import run_command
from benchmarks.studies.registry import Study, read_studies
from benchmarks.studies.store import Store
from llmdpd_torchrl.baselines import retrieve_and_play_policy
from llmdpd_torchrl.evaluation import Evaluator
from llmdpd_torchrl.evaluation.controls import swap_prompts
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import prepare
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.prompts import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.utils.files import write_atomic, write_text
from llmdpd_torchrl.utils.processes import make_backend

COLUMNS = ("demonstration", "task", "successes", "episodes")
#: By the task demonstrated and the task acted on: successes and episodes.
Matrix = dict[tuple[str, str], tuple[int, int]]


@dataclass
class Options:
    """Settings of the command."""

    tasks: Sequence[str] = ()
    episodes: int = 4
    workers: int | None = None
    data: str = ""
    definitions: str = str(Path(__file__).parent / "definitions")
    store: str = str(RESULTS)


def demonstrations(study: Study, place: Place, tasks: Sequence[str]) -> TrajectoryPromptBank:
    """The undisturbed demonstrations of some tasks, as the study has them in its folds."""
    banks = []
    variants = {variant.fold: variant for variant in study.variants
                if variant.base == "retrieve_and_play"}  # fmt: skip
    for fold in chosen_folds(["development", "report"]):
        cfg, family = Job(study, variants[fold], 0).read(place), MetaWorld()
        with tempfile.TemporaryDirectory() as folder:
            cfg.output_dir = folder
            run = prepare(cfg, family)
        held_out = tuple(task for task in run.split.held_out if task in tasks)
        if held_out:
            run.split = replace(run.split, held_out=held_out)
            length = cfg.trajectory_prompt.length
            support = family.support(run)
            banks.append(TrajectoryPromptBank.from_dataset(support, length, trained_on=False))
    return TrajectoryPromptBank.concatenate(banks)


def read_matrix(path: Path) -> Matrix:
    """The pairs of a file; none, if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["demonstration"], row["task"]): (int(row["successes"]), int(row["episodes"]))
            for row in rows}  # fmt: skip


def write_matrix(path: Path, matrix: Mapping[tuple[str, str], tuple[int, int]]) -> None:
    """Write a row a pair, in the order of the task table."""
    order = METAWORLD_TASKS.index
    pairs = sorted(matrix, key=lambda pair: (order(pair[0]), order(pair[1])))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*pair, *matrix[pair]] for pair in pairs)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)


def fill(
    matrix: Matrix, path: Path, evaluator: Evaluator, tables: PromptTables, length: int
) -> None:
    """Run the missing pairs of the evaluator's tasks, and store them after each round of all."""
    policy = retrieve_and_play_policy(NetworkConfig(prompt="trajectory", trajectory_length=length))
    tasks, goals = evaluator.tasks, evaluator.settings.episodes_per_task
    for offset in range(len(tasks)):
        others = {task: tasks[(place + offset) % len(tasks)] for place, task in enumerate(tasks)}
        if all(matrix.get((other, task), (0, 0))[1] == goals for task, other in others.items()):
            continue
        episodes = evaluator(policy, swap_prompts(tasks, tables, offset))
        solved = Counter(episode.task for episode in episodes if episode.success)
        matrix |= {(other, task): (solved[task], goals) for task, other in others.items()}
        write_matrix(path, matrix)
        print(f"{offset + 1} of {len(tasks)} rounds", flush=True)


def figures(matrix: Matrix, tasks: Sequence[str]) -> dict[str, float]:
    """Success in percent with the own and with others' demonstrations, and pairs that transfer."""
    rates = {pair: 100 * matrix[pair][0] / matrix[pair][1] for pair in matrix
             if set(pair) <= set(tasks)}  # fmt: skip
    others = [rate for (shown, task), rate in rates.items() if shown != task]
    return {
        "own": float(np.mean([rates[task, task] for task in tasks])),
        "others": float(np.mean(others)),
        "other_pairs": len(others),
        "other_pairs_from_half": sum(rate >= 50 for rate in others),
    }


def build_page(matrix: Matrix, tasks: Sequence[str], found: Mapping[str, float]) -> str:
    """The page: the picture, means, and the pairs of different tasks that replay solves."""
    solved: dict[str, list[str]] = {}
    for task in tasks:
        for shown in tasks:
            won, all_ = matrix[shown, task]
            if shown != task and 2 * won >= all_:
                solved.setdefault(task, []).append(shown.removesuffix("-v3"))
    rows = [
        (
            task.removesuffix("-v3"),
            str(len(names)),
            ", ".join(names[:6]) + ", ..." * (len(names) > 6),
        )
        for task, names in solved.items()
    ]
    episodes = max(all_ for _, all_ in matrix.values())
    return f"""\
# A demonstration of each task on each other

Retrieve and play, which is not trained, on every one of {len(tasks)} tasks with a demonstration of
every one; {episodes} episode{"s" * (episodes > 1)} a pair, the goals and demonstrations of
seed 0 of [every task unseen once](unseen_all.md). Success is {found["own"]:.0f} % with the task's
own demonstration and {found["others"]:.1f} % with others'; {found["other_pairs_from_half"]:.0f}
of {found["other_pairs"]:.0f} pairs of different tasks are solved in half of the episodes or more.

![success by task and demonstration](transfer.png)

{Table(("task", "other tasks whose demonstration solves it", "which"), rows).markdown()}
"""


def plot(matrix: Matrix, tasks: Sequence[str], path: Path) -> None:
    """A heat map: a row a task, a column a demonstration."""
    from matplotlib.figure import Figure

    missing = (0, 0)
    pairs = [[matrix.get((shown, task), missing) for shown in tasks] for task in tasks]
    rates = [[100 * won / all_ if all_ else np.nan for won, all_ in row] for row in pairs]
    size = 2.5 + 0.17 * len(tasks)
    figure = Figure(figsize=(size + 0.5, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(rates, vmin=0, vmax=100, cmap="viridis")
    names = [task.removesuffix("-v3") for task in tasks]
    axis.set_xticks(range(len(tasks)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(tasks)), names, fontsize=7)
    axis.set(xlabel="demonstration of", ylabel="task")
    figure.colorbar(image, label="success of retrieve and play, %", shrink=0.7)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def run(options: Options) -> None:
    """Run what is missing, and write the picture and the figures.

    Raises:
        UserError: on a task that does not exist, and if demonstrations cannot be collected.
    """
    tasks = METAWORLD_TASKS.check(options.tasks or METAWORLD_TASKS.names)
    root = Path(options.store).resolve()
    data = Path(options.data).resolve() if options.data else None
    place = Place(Store(root), data, root, options.workers)
    study = read_studies(Path(options.definitions))["unseen_all"]
    root.mkdir(parents=True, exist_ok=True)
    path = root / "transfer.csv"
    cfg = Job(study, study.variants[0], 0).read(place)
    bank = demonstrations(study, place, tasks)
    settings = replace(MetaWorld().settings(cfg), episodes_per_task=options.episodes)
    backend = make_backend(cfg.evaluation.backend, options.workers)
    with (
        FileLock(root / ".transfer.lock", timeout=0),
        Evaluator(tasks, settings, backend=backend, progress=False) as evaluator,
    ):
        matrix = read_matrix(path)
        fill(matrix, path, evaluator, PromptTables(trajectories=bank), bank.length)
    plot(matrix, tasks, root / "transfer.png")
    found = figures(matrix, tasks)
    write_text(root / "transfer.md", build_page(matrix, tasks, found))
    if root == RESULTS:
        command = "python -m benchmarks.studies.transfer"
        write_figures("transfer", found, {"transfer": path.name}, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run, Options, arguments)


if __name__ == "__main__":
    sys.exit(main())
