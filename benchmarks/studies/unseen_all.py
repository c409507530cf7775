"""Page and figures of the study ``unseen_all``: every task unseen once, by what is demonstrated.

``results/unseen_all.md`` and ``results/unseen_all.json`` are written from the stored episodes by
``python -m benchmarks.studies unseen_all`` and ``--page``. What is not there yet is a dash on the
page, and no figure; a mean over some of a group's tasks says over how many, and is no figure.
"""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common import RESULTS, write_readme_table
from benchmarks.studies.figures import figures_of, stored_files, write_changed
from benchmarks.studies.folds import chosen_folds
from benchmarks.studies.registry import Arm, Study, Variant
from benchmarks.studies.store import Store
from llmdpd_torchrl.evaluation.comparison import nested_mean
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, Estimate
from llmdpd_torchrl.tasks import FOLDS, SPLITS
from llmdpd_torchrl.utils.files import write_text

NAME = "unseen_all"
#: What variants are called in the names of figures.
SHORT = {"retrieve_and_play": "rnp", "retrieve_and_play_plus": "rnp_plus"}
#: The arm whose value is success at the last step.
TO_THE_END = "clean_to_the_end"
#: Differences that are figures, and their names: variant and arm on both sides.
DIFFERENCES = {
    **{
        f"{arm}_minus_{SHORT[other]}": (("ours", arm), (other, arm))
        for other in ("retrieve_and_play_plus", "retrieve_and_play")
        for arm in ("clean", "noisy", "half_speed", "states_only", "other_actions", TO_THE_END)
    },
    "five_minus_one": (("ours", "five"), ("ours", "clean")),
    "two_minus_one": (("ours", "two"), ("ours", "clean")),
    "wrong_minus_none": (("ours", "wrong"), ("ours", "none")),
}
#: From this success rate of replay on, a policy can only do harm.
EASY = 98.0
#: Below this success rate with a clean demonstration, a task is not solved.
SOLVED = 90.0
#: The two between which an oracle chooses, task by task and demonstration by demonstration.
CHOICE = ("ours", "clean"), ("retrieve_and_play_plus", "clean")
#: What ``failures.py`` stores, and why these episodes fail, from looking at them.
FAILURES = "unseen_all_failures.csv"
WHY = {
    "stick-pull-v3": "the stick is lifted and misses the handle that it has to go through, pushes "
    "the thermos away, or is lost on the way",
    "plate-slide-back-v3": "with the goal to one side the plate leaves the net to that side and "
    "slips from under the hand",
    "pick-out-of-hole-v3": "the hand is at the puck, moves it in the hole, and rises without it",
    "pick-place-wall-v3": "the puck is lifted in every one, and stays 15 to 30 cm from the goal",
    "handle-pull-side-v3": "the hand loses the lever below the top and does not get under it again",
}
#: What the README shows, by the names of variants and arms.
README_VARIANTS = {
    "ours": "ours",
    "retrieve_and_play_plus": "retrieve and play+, untrained",
    "retrieve_and_play": "retrieve and play, untrained",
    "pooled": "pooled, the paper's",
}
README_ARMS = {
    "clean": "one demonstration",
    "noisy": "of a disturbed expert",
    "half_speed": "of one at half speed",
    "states_only": "without actions",
    "other_actions": "in another action space",
    "five": "five demonstrations",
    "wrong": "another task's",
    "none": "none",
}
_SEEN = {
    "seen": "with the state visible",
    "seen_following": "by a demonstration alone, as on unseen ones",
}
_TITLES = {
    "report": "The 30 tasks of the report",
    "development": "The 20 tasks that choices were made on",
    "hard": "All 50 tasks, siblings held out together",
}
_HEAD = """\
# Every task unseen once

Success on tasks that the policy was not trained on, in percent: 45 tasks are trained on, the other
five evaluated, until each has been unseen once. Every seed trains anew, and has its own 25 goals
and its own demonstration, the same for all policies, also for those that are not trained. Intervals
are of 95 %, for new tasks and new seeds, both resampled; differences are paired by task, seed and
goal. In brackets, a number of tasks: the mean is over fewer than there are; a dash: not run. Three
seeds are of ours, retrieve and play and retrieve and play+ in the arms of the README's table; all
else is of one.
*clean to the end* counts success at the last of 500 steps, all others success at any step.
"""
_TAIL = """\
[What was tried](unseen_all_leads.md), with its figures on the development tasks.
[What a demonstration of each task does on each other](transfer.md), replayed.
`python -m benchmarks.studies.arm_videos` films arms side by side.
"""

#: By task and seed, the mean over goals in percent.
Cells = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Group:
    """All stored arms of the variants on a group of folds.

    Attributes:
        name: of the group, in :data:`FOLDS`.
        tasks: that are unseen in its folds, in their order.
        cells: by names of variant and arm.
    """

    name: str
    tasks: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cells]

    def mean(self, variant: str, arm: str, tasks: Sequence[str] = ()) -> Estimate | None:
        """The mean of an arm, over its tasks or some; ``None``: nothing is there."""
        return _mean(self.cells.get((variant, arm), {}), tasks)

    def is_complete(self, variant: str, arm: str) -> bool:
        """Whether all tasks of an arm are there."""
        return self.cells.get((variant, arm), {}).keys() == set(self.tasks)

    def paired(
        self,
        ours: tuple[str, str],
        theirs: tuple[str, str],
        of: Callable[[float, float], float] = operator.sub,
    ) -> Cells:
        """Ours minus theirs, or ``of`` the two, of the tasks and seeds that both have."""
        mine, other = (self.cells.get(key, {}) for key in (ours, theirs))
        pairs = {
            task: {s: of(mine[task][s], other[task][s]) for s in mine[task] if s in other[task]}
            for task in mine
            if task in other
        }
        return {task: by_seed for task, by_seed in pairs.items() if by_seed}


def _mean(cells: Cells, tasks: Sequence[str] = ()) -> Estimate | None:
    values = {t: list(by.values()) for t, by in cells.items() if not tasks or t in tasks}
    return nested_mean(values) if values else None


def read_group(study: Study, store: Store, name: str) -> Group:
    """What is stored of a group of folds: arms of a fold and seed that have all their goals."""
    cells: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for variant, arm, seed, found in _stored(study, store, chosen_folds([name]), "unseen"):
        of_arm = cells.setdefault((variant.base, arm.name), {})
        for task, value in found.items():
            of_arm.setdefault(task, {})[seed] = value
    tasks = tuple(task for fold in FOLDS[name] for task in SPLITS[fold].held_out)
    return Group(name, tasks, cells)


def read_seen(study: Study, store: Store, name: str) -> dict[tuple[str, str], Cells]:
    """What is stored of trained tasks, by variant and arm: of each task, all seeds and folds."""
    cells: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for variant, arm, _, found in _stored(study, store, chosen_folds([name]), "seen"):
        for task, value in found.items():
            of_task = cells.setdefault((variant.base, arm.name), {}).setdefault(task, {})
            of_task[len(of_task)] = value
    return dict(cells)


def _stored(
    study: Study, store: Store, folds: Sequence[str], group: str
) -> Iterator[tuple[Variant, Arm, int, dict[str, float]]]:
    """The arms on a group of tasks, seed by seed: the value of each task that is stored."""
    for variant in (variant for variant in study.variants if variant.fold in folds):
        for arm in (arm for arm in variant.arms if arm.group == group):
            for seed in study.seeds_of(variant):
                episodes = store.episodes(study, variant, seed, arm)
                yield variant, arm, seed, _by_task(episodes or (), arm)


def _by_task(episodes: Sequence[EpisodeResult], arm: Arm) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for one in episodes:
        value = one.success_at_end if arm.name == TO_THE_END else one.success
        found.setdefault(one.task, []).append(value and one.error is None)
    return {task: 100 * float(np.mean(values)) for task, values in found.items()}


def figures(study: Study, store: Store) -> dict[str, float]:
    """Means and differences with their limits, of the report's tasks; others by their group.

    A figure is there if all tasks of its group are.
    """
    found: dict[str, float] = {}
    for name in _TITLES:
        group = read_group(study, store, name)
        prefix = "" if name == "report" else f"{name}_"
        for variant, arm in (key for key in group.cells if group.is_complete(*key)):
            label = f"{prefix}{_short(variant)}_{arm}"
            found |= figures_of(label, group.mean(variant, arm))
            found[f"{label}_seeds"] = min(len(by) for by in group.cells[variant, arm].values())
        for label, sides in DIFFERENCES.items():
            if all(group.is_complete(*side) for side in sides):
                found |= figures_of(f"{prefix}{label}", _mean(group.paired(*sides)))
        if all(group.is_complete(*side) for side in CHOICE):
            found |= figures_of(f"{prefix}better_of_two_clean", _mean(group.paired(*CHOICE, max)))
        found |= figures_of(f"{prefix}clean_minus_rnp_on_easy_tasks", _on_easy(group))
        for (variant, arm), seen in read_seen(study, store, name).items():
            found |= figures_of(f"{prefix}{_short(variant)}_{arm}", _mean(seen))
    ml45 = SPLITS["fold_ml45"].held_out
    report = read_group(study, store, "report")
    for variant in dict.fromkeys(variant for variant, _ in report.cells):
        if set(ml45) <= report.cells.get((variant, "clean"), {}).keys():
            mean = report.mean(variant, "clean", ml45)
            found |= figures_of(f"ml45_{_short(variant)}_clean", mean)
    return found


def _short(variant: str) -> str:
    return SHORT.get(variant, variant)


def _on_easy(group: Group) -> Estimate | None:
    """Ours minus replay on the tasks where replay of a clean demonstration hardly ever fails."""
    sides = ("ours", "clean"), ("retrieve_and_play", "clean")
    if not all(group.is_complete(*side) for side in sides):
        return None
    replay = group.cells[sides[1]]
    easy = [task for task in group.tasks if np.mean([*replay[task].values()]) >= EASY]
    return _mean(group.paired(*sides), easy) if easy else None


def build_page(study: Study, store: Store) -> str:
    """The page as Markdown; groups of folds of which nothing is stored are left out."""
    parts = [_HEAD]
    labels = {variant.base: variant.label for variant in study.variants}
    arms = list(dict.fromkeys(arm.name for variant in study.variants for arm in variant.arms))
    for name, title in _TITLES.items():
        group = read_group(study, store, name)
        if not any(group.cells.values()):
            continue
        names = {arm: arm.replace("_", " ") for arm in arms}
        parts += [f"## {title}\n", _arm_table(group, labels, names).markdown() + "\n"]
        differences = _difference_table(group)
        parts += [differences.markdown() + "\n"] if differences.rows else []
        for (variant, arm), seen in read_seen(study, store, name).items():
            if (found := _mean(seen)) is not None:
                how = _SEEN.get(arm, arm)
                parts += [f"Trained tasks, {how}: {labels[variant]} {_text(found)}\n"]
        parts += ["Clean demonstration, by task:\n", _task_table(group, labels).markdown() + "\n"]
        parts += _unsolved(group)
        if name == "report":
            parts += _why(store)
    return "\n".join([*parts, _TAIL])


def _arm_table(group: Group, labels: Mapping[str, str], arms: Mapping[str, str]) -> Table:
    shown = [v for v in labels if any(group.cells.get((v, arm)) for arm in arms)]
    rows = []
    for arm in (arm for arm in arms if any(group.cells.get((v, arm)) for v in shown)):
        cells = []
        for variant in shown:
            found, there = group.mean(variant, arm), group.cells.get((variant, arm), {})
            some = "" if group.is_complete(variant, arm) else f"{len(there)} tasks"
            cells.append("-" if found is None else _text(found, some))
        rows.append((arms[arm], *cells))
    return Table(("demonstration", *(labels[variant] for variant in shown)), rows)


def _difference_table(group: Group) -> Table:
    rows = []
    for name, sides in DIFFERENCES.items():
        pairs = group.paired(*sides)
        found = _mean(pairs)
        if found is None:
            continue
        some = "" if pairs.keys() == set(group.tasks) else f"{len(pairs)} tasks"
        label = name.replace("_", " ").replace("rnp plus", "retrieve and play+")
        label = label.replace("rnp", "retrieve and play")
        rows.append((f"ours, {label}", _text(found, some, signed=True)))
    easy = _on_easy(group)
    label = f"ours, clean minus retrieve and play, on tasks where the latter has {EASY:.0f} or more"
    rows += [] if easy is None else [(label, _text(easy, signed=True))]
    return Table(("difference", "points"), rows)


def _task_table(group: Group, labels: Mapping[str, str]) -> Table:
    shown = [v for v in labels if group.cells.get((v, "clean"))]
    rows = []
    for task in group.tasks:
        found = (group.cells[variant, "clean"].get(task) for variant in shown)
        rows.append((task, *map(_percent, found)))
    return Table(("task", *(labels[variant] for variant in shown)), rows)


def _unsolved(group: Group) -> Iterator[str]:
    """The tasks that ours does not solve with a clean demonstration, beside what bounds it."""
    ours, replay, *others = (
        group.cells.get(side, {})
        for side in (*CHOICE, ("ours", "noisy"), ("ours", "five"), ("ours", "none"))
    )
    names = ("ours", "retrieve and play+", "better of the two", "disturbed", "five", "none")
    columns = (ours, replay, group.paired(*CHOICE, max), *others)
    missed = [t for t in group.tasks if t in ours and np.mean([*ours[t].values()]) < SOLVED]
    rows = [(task, *(_percent(cells.get(task)) for cells in columns)) for task in missed]
    means = (_mean(cells) for cells in columns)
    rows.append((f"all {len(group.tasks)}", *(f"{m.value:.0f}" if m else "-" for m in means)))
    yield f"""\
Not solved: ours is below {SOLVED:.0f} with a clean demonstration. Beside it an oracle, which
chooses between ours and retrieve and play+ by task and demonstration, and ours in other arms:
"""
    yield Table(("task", *names), rows).markdown() + "\n"


def _why(store: Store) -> Iterator[str]:
    """What became of the failed episodes of one seed, if they were looked at."""
    path = store.root / FAILURES
    if not path.exists():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        failed = [row for row in rows if row["task"] == task]
        middle = {
            key: float(np.median([float(row[key]) for row in failed]))
            for key in ("nearest_hand", "moved", "from_goal", "replayed")
        }
        lifted = sum(int(row["lifted"]) for row in failed)
        counts = f"{len(failed)} of {failed[0]['episodes']}", f"{lifted} of {len(failed)}"
        *metres, replayed = middle.values()
        found.append((task, *counts, *(f"{value:.2f}" for value in metres), f"{replayed:.0f}"))
    head = ("task", "failed", "object ever lifted", "hand at its nearest, m", "object moved, m",
            "from the goal, m", "steps of replay")  # fmt: skip
    yield """\
The failed episodes of seed 0 with a clean demonstration: how often the object was lifted by 3 cm;
medians of how near the hand came to it, how far it moved, and how far from the goal it ended; and
in how many of 500 steps the demonstration was replayed because the policy stood still:
"""
    yield Table(head, found).markdown() + "\n"
    seen = dict.fromkeys(row["task"] for row in rows)
    yield "".join(f"- {task}: {WHY[task]}.\n" for task in seen if task in WHY)


def _percent(by_seed: Mapping[int, float] | None) -> str:
    return f"{np.mean([*by_seed.values()]):.0f}" if by_seed else "-"


def readme_table(study: Study, store: Store) -> Table:
    """The README's table: what a policy is shown, and what each makes of it."""
    group = read_group(study, store, "report")
    rows = []
    for arm, name in README_ARMS.items():
        means = (group.mean(variant, arm) for variant in README_VARIANTS)
        rows.append((name, *("" if mean is None else _text(mean) for mean in means)))
    return Table(("success, % (95 % interval)", *README_VARIANTS.values()), rows)


def _text(found: Estimate, some: str = "", *, signed: bool = False) -> str:
    """A value with its interval, and the number of tasks if these are not all."""
    value, low, high = (f"{round(x):+d}" if signed else f"{x:.0f}" for x in found)
    return f"{value} ({low} to {high}{some and f'; {some}'})"


def all_figures(studies: Mapping[str, Study], store: Store) -> dict[str, dict[str, float]]:
    """The figures by the name of their file, if there are any."""
    found = figures(studies[NAME], store) if NAME in studies else {}
    return {NAME: found} if found else {}


def publish(studies: Mapping[str, Study], store: Store) -> None:
    """Write the page beside the stored files, and figures that have changed, if there are any."""
    files = stored_files(NAME, store)
    if NAME not in studies or not files:
        return
    write_text(store.root / f"{NAME}.md", build_page(studies[NAME], store))
    if store.root == RESULTS:  # figures are of the committed files alone
        write_readme_table(
            f"studies {NAME}", readme_table(studies[NAME], store).markdown().splitlines()
        )
        found = figures(studies[NAME], store)
        write_changed(NAME, found, files)
