"""The runs in a folder: their episodes, by variant and seed, and tables that compare them."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from llmdpd_torchrl.evaluation.comparison import (
    Scores,
    interquartile_mean,
    normalized_scores,
    paired_difference,
    performance_profile,
    successes,
)
from llmdpd_torchrl.evaluation.results import read_results_json
from llmdpd_torchrl.evaluation.statistics import (
    EpisodeResult,
    GroupSummary,
    ResultsSummary,
    summarise,
)
from llmdpd_torchrl.utils.errors import DataError

__all__ = ["Run", "Table", "Variant", "compare", "find_runs", "task_table", "variants"]


@dataclass(frozen=True)
class Run:
    """One ``results.json`` and what it says.

    Attributes:
        folder: where it lies, with the run's other files.
        name: of the run, its seed left out.
        seed: of its training.
        seen: the training tasks that were evaluated.
        unseen: the others.
        episodes: all of them.
        about: everything else in the file.

    Examples:
        >>> episode = EpisodeResult("reach-v3", 0, True, True, 9.0, 60)
        >>> run = Run(Path("outputs/a-seed1"), "a", 1, ("reach-v3",), (), (episode,), {})
        >>> variants([run])[0].name
        'a'
    """

    folder: Path
    name: str
    seed: int
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    episodes: tuple[EpisodeResult, ...]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone.

    Attributes:
        name: of the runs.
        runs: by seed.
        summary: of all their episodes together.

    Examples:
        >>> episode = EpisodeResult("reach-v3", 0, True, True, 9.0, 60)
        >>> run = Run(Path("a-seed1"), "a", 1, ("reach-v3",), (), (episode,), {})
        >>> variants([run])[0].scores("seen")
        {'reach-v3': array([[1.]])}
    """

    name: str
    runs: tuple[Run, ...]
    summary: ResultsSummary

    def scores(self, group: str) -> dict[str, Any]:
        """Successes, or scores over 100, of ``"seen"`` or ``"unseen"`` tasks, [seeds, goals]."""
        table = self._table()
        return {task: table[task] for task in getattr(self.runs[0], group)}

    def profile(self, thresholds: Any) -> Any:
        """Share of tasks and seeds whose success rate, or score over 100, is above each."""
        means = {task: rows.mean(-1) for task, rows in self._table().items()}
        return performance_profile(means, thresholds)

    def _table(self) -> dict[str, Any]:
        episodes = [run.episodes for run in self.runs]
        if self.summary.measure != "score":
            return successes(episodes)
        return {task: rows / 100 for task, rows in normalized_scores(episodes).items()}


def find_runs(folder: str | Path) -> list[Run]:
    """All runs below a folder, or the one that it is.

    Raises:
        DataError: if there is none, or a file is damaged.
    """
    files = sorted(Path(folder).rglob("results.json"))
    if not files:
        raise DataError(
            f"{folder}: there is no results.json in it or below; evaluate a policy first"
        )
    return [_read(file) for file in files]


def _read(file: Path) -> Run:
    summary, about = read_results_json(file)
    names = {field.name for field in fields(EpisodeResult)}
    try:
        episodes = tuple(
            EpisodeResult(**{key: value for key, value in episode.items() if key in names})
            for episode in about.pop("episodes")
        )
        name, seed = str(about["name"]), int(about["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: its episodes, name or seed are wrong ({error!r})") from None
    # Of the same name, but shown something else, it is another variant.
    shown = about.get("control", "both")
    name = re.sub(rf"[-_]?seed{seed}(?=$|[-_ ])", "", name) + (
        "" if shown == "both" else f" {shown}"
    )
    return Run(
        file.parent, name, seed,
        tuple(task.task for task in summary.tasks if task.seen),
        tuple(task.task for task in summary.tasks if not task.seen),
        episodes, about,
    )  # fmt: skip


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Runs by name.

    Raises:
        DataError: if two runs of a name have the same seed, or other tasks or goals.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    found = []
    for name, members in groups.items():
        members.sort(key=lambda run: run.seed)
        for one, other in itertools.pairwise(members):
            if one.seed == other.seed:
                raise DataError(
                    f"{one.folder} and {other.folder} are both {name!r} of seed {one.seed}: "
                    "report on one of them, or rename a run"
                )
        for run in members[1:]:
            if not _same_episodes(run, members[0]):
                raise DataError(
                    f"{run.folder} and {members[0].folder} are both {name!r}, but of other tasks, "
                    "goals or evaluation settings: evaluate them alike, or rename one"
                )
        episodes = [episode for run in members for episode in run.episodes]
        summary = summarise(episodes, members[0].seen, members[0].unseen)
        found.append(Variant(name, tuple(members), summary))
    return found


def _same_episodes(one: Run, other: Run) -> bool:
    """Whether the same goals were evaluated in the same way."""
    goals = [{(e.task, e.goal_index) for e in run.episodes} for run in (one, other)]
    return goals[0] == goals[1] and all(
        one.about.get(key) == other.about.get(key) for key in ("starts", "evaluation")
    )


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, for several kinds of files.

    Examples:
        >>> print(Table(("task", "%"), [("reach_v3", "100")]).markdown())
        | task | % |
        |---|---:|
        | reach_v3 | 100 |
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self, texts: int = 1) -> str:
        """GitHub's; the first ``texts`` columns are of text, the others of numbers."""
        rule = ["---"] * texts + ["---:"] * (len(self.head) - texts)
        lines = [self.head, rule, *self.rows]
        text = ["| " + " | ".join(cells) + " |" for cells in lines]
        text[1] = text[1].replace(" ", "")
        return "\n".join(text)

    def csv(self) -> str:
        """With a comma."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """For the package ``booktabs``."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(re.sub(r"([%&_#$])", r"\\\1", cell) for cell in cells) + r" \\"

        columns = "l" + "r" * (len(self.head) - 1)
        body = [line(row) for row in self.rows]
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(self.head), r"\midrule", *body,
             r"\bottomrule", r"\end{tabular}", ""]
        )  # fmt: skip


def compare(found: Sequence[Variant]) -> Table:
    """A row a variant: success, or score, on seen and unseen tasks; difference to the first.

    Intervals are of 95 %. Those of the means take the policies as they are and the episodes as
    drawn (see :func:`summarise`); the interquartile mean's is of tasks and seeds, and there from
    two seeds on; the difference is paired by goals, on the tasks of the group that is named.
    """
    groups = [g for g in ("seen", "unseen") if any(getattr(v.summary, g) for v in found)]
    hardest = groups[-1]
    measures = {variant.summary.measure.removeprefix("success ") for variant in found}
    unit = f" {' or '.join(sorted(measures))}"
    head = ["variant", *(f"{group}{unit}" for group in groups)]
    head += [f"{hardest}, points above the first", f"{hardest} IQM{unit}"]
    head += ["seeds", "episodes", "failed"]
    rows = []
    for variant in found:
        errors = sum(task.errors for task in variant.summary.tasks)
        count = sum(task.episodes for task in variant.summary.tasks)
        cells = [variant.name, *(_interval(getattr(variant.summary, group)) for group in groups)]
        cells += _against(variant, found[0], hardest)
        rows.append((*cells, str(len(variant.runs)), str(count), str(errors)))
    return Table(head, rows)


def _against(variant: Variant, first: Variant, group: str) -> tuple[str, str]:
    """The paired difference to the first variant, and the interquartile mean."""
    scores, theirs = variant.scores(group), first.scores(group)
    difference = "-"
    goals = sum(rows.shape[-1] for rows in scores.values())
    if variant is not first and scores and goals > len(scores):  # one goal a task has no interval
        difference = "other episodes"
        if _same_starts(variant.runs[0], first.runs[0], scores, theirs):
            value, low, high = (100 * x for x in paired_difference(scores, theirs))
            difference = f"{value:+.0f} ({low:+.0f} - {high:+.0f})"
    if len(variant.runs) == 1 or not scores:
        return difference, "-"
    means = {task: rows.mean(-1) for task, rows in scores.items()}
    value, low, high = (100 * x for x in interquartile_mean(means))
    return difference, f"{value:.0f} ({low:.0f} - {high:.0f})"


def _same_starts(one: Run, other: Run, scores: Scores, theirs: Scores) -> bool:
    """Whether the tasks of two groups were evaluated on the same goals."""
    if {task: np.shape(rows)[-1] for task, rows in scores.items()} != {
        task: np.shape(rows)[-1] for task, rows in theirs.items()
    }:
        return False
    starts = [run.about.get("starts") or {} for run in (one, other)]
    return all(starts[0].get(task) == starts[1].get(task) for task in scores)


def task_table(found: Sequence[Variant]) -> Table:
    """A row a task, a column a variant: success in percent, or score, all seeds together."""
    cells: dict[str, dict[str, str]] = {}
    for variant in found:
        for task in variant.summary.tasks:
            label = task.task if task.seen else f"{task.task} (unseen)"
            cells.setdefault(label, {})[variant.name] = task.percent.text()
    names = [variant.name for variant in found]
    rows = [(task, *(by.get(name, "-") for name in names)) for task, by in cells.items()]
    return Table(("task", *names), rows)


def _interval(group: GroupSummary | None) -> str:
    return "-" if group is None else group.percent.text()
