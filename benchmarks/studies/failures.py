"""What becomes of the episodes that are not solved: a row each, for the pages that say why.

    python -m benchmarks.studies.failures                       # the tasks of the page
    python -m benchmarks.studies.failures 'tasks=[stick-pull-v3]'

The policy is that of the study ``unseen_all``, variant ``ours`` and seed ``seed``, of the fold in
which the task is unseen, with a clean demonstration and the study's goals; it is trained if it is
not there. ``unseen_all_failures.csv`` has, of each failed episode, how near the hand came to the
first object, whether that was ever lifted by 3 cm, how far it has moved, how far it is from the
goal at the end, and in how many steps the demonstration was replayed. Further settings: ``data``,
``output`` and ``store`` as for the study.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.common import RESULTS
from benchmarks.studies.folds import chosen_folds
from benchmarks.studies.jobs import Job, Place
from benchmarks.studies.options import run_command
from benchmarks.studies.registry import read_studies
from benchmarks.studies.runner import check, prompted_by, train
from benchmarks.studies.store import Store
from benchmarks.studies.unseen_all import FAILURES
from llmdpd_torchrl.envs import MultiTaskEnv
from llmdpd_torchrl.evaluation.rollout import make_policy_env
from llmdpd_torchrl.experiments.config import Run
from llmdpd_torchrl.experiments.evaluate import evaluation_prompts
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS, SPLITS
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_atomic

ROOT = Path(__file__).parents[2]
#: The tasks that the report's policy solves least.
TASKS = ("stick-pull-v3", "plate-slide-back-v3", "pick-out-of-hole-v3", "bin-picking-v3",
         "box-close-v3", "pick-place-v3", "handle-pull-side-v3", "pick-place-wall-v3")  # fmt: skip
COLUMNS = ("task", "goal", "episodes", "nearest_hand", "lifted", "moved", "from_goal", "replayed")
_LIFT = 0.03


@dataclass
class Options:
    """Settings of the command."""

    tasks: Sequence[str] = field(default=TASKS)
    seed: int = 0
    data: str = ""
    definitions: str = str(Path(__file__).parent / "definitions")
    store: str = str(RESULTS)
    output: str = str(ROOT / "outputs" / "results")


def failures(run: Run, task: str) -> Iterator[dict[str, Any]]:
    """A row for each goal of a task that the run's policy does not reach."""
    settings = run.family.settings(run.cfg)
    count = settings.episodes_per_task
    suite = run.family.suite(run, settings)
    base = MultiTaskEnv(suite.make, [task] * count)
    env = make_policy_env(run.policy, base, evaluation_prompts(run))
    fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
    hand, thing, goal = (
        slice(*fields[name]) for name in ("hand_position", "object_1_position", "goal_position")
    )
    for goal_index in range(count):
        base.assign(goal_index, task, goal_index)
    state, generator = env.reset(), settings.generator(0)
    first = last = state["observation"]
    running = torch.ones(count, dtype=torch.bool)
    solved, lifted = ~running, ~running
    nearest, replayed = torch.full((count,), torch.inf), torch.zeros(count, dtype=torch.int64)
    while running.any():
        actions = torch.zeros(env.action_spec.shape)
        with torch.no_grad():
            actions[running] = settings.act(run.policy, state[running], generator)
        step = env.step(state.set("action", actions).set("_step", running))["next"]
        seen = step["observation"]
        last = torch.where(running.unsqueeze(-1), seen, last)
        distance = (seen[:, hand] - seen[:, thing]).norm(dim=-1)
        nearest = torch.where(running, torch.minimum(nearest, distance), nearest)
        lifted |= running & (seen[:, thing][:, 2] - first[:, thing][:, 2] > _LIFT)
        replayed += running & step["is_recovering"].view(count)
        solved |= running & step["success"].view(count)
        state = step.exclude("reward")
        running &= ~step["done"].view(count)
    env.close()
    moved = (last[:, thing] - first[:, thing]).norm(dim=-1)
    away = (last[:, thing] - last[:, goal]).norm(dim=-1)
    for number in (~solved).nonzero().squeeze(-1).tolist():
        yield {
            "task": task,
            "goal": number,
            "episodes": count,
            "nearest_hand": round(float(nearest[number]), 3),
            "lifted": int(lifted[number]),
            "moved": round(float(moved[number]), 3),
            "from_goal": round(float(away[number]), 3),
            "replayed": int(replayed[number]),
        }


def run(options: Options) -> None:
    """Write the rows.

    Raises:
        UserError: if a task is in no fold of the report, or the training fails.
        Timeout: if another process trains the policy.
    """
    study = read_studies(Path(options.definitions))["unseen_all"]
    data = Path(options.data).resolve() if options.data else None
    place = Place(Store(Path(options.store).resolve()), data, Path(options.output).resolve())
    variants = {v.fold: v for v in study.variants if v.base == "ours"}
    rows = []
    for task in METAWORLD_TASKS.check(options.tasks):
        folds = [f for f in chosen_folds(["report"]) if task in SPLITS[f"fold_{f}"].held_out]
        if not folds:
            raise ConfigError(f"tasks: {task} is in no fold of the report")
        job = Job(study, variants[folds[0]], options.seed)
        check([job], place)
        job.folder(place).mkdir(parents=True, exist_ok=True)
        with FileLock(job.folder(place) / ".lock", timeout=0):
            trained = train(job, place)
        clean = next(arm for arm in job.variant.arms if arm.name == "clean")
        found = list(failures(prompted_by(trained, study, clean), task))
        print(f"{task}: {len(found)} failed", flush=True)
        rows += found

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(place.store.root / FAILURES, write)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run, Options, arguments)


if __name__ == "__main__":
    sys.exit(main())
