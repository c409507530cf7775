"""Results of evaluations: ``results.json``, tables, and runs by variant and seed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markdown import Markdown

from llmdpd_torchrl.evaluation.comparison import (
    normalized_scores,
    paired_difference,
    percents,
    performance_profile,
    successes,
)
from llmdpd_torchrl.evaluation.statistics import (
    EpisodeResult,
    GroupSummary,
    ResultsSummary,
    TaskSummary,
    summarise,
    wrong_entry,
)
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_json, write_text


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, as Markdown, CSV or LaTeX.

    Attributes:
        head: names of the columns.
        rows: their cells.

    Examples:
        >>> print(Table(("task", "%"), [("reach_v3", "100")]).markdown())
        | task | % |
        |---|---:|
        | reach_v3 | 100 |
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self, texts: int = 1) -> str:
        """A GitHub table; the first ``texts`` columns hold text, the others numbers."""
        rule = ["---"] * texts + ["---:"] * (len(self.head) - texts)
        lines = [self.head, rule, *self.rows]
        text = ["| " + " | ".join(cells) + " |" for cells in lines]
        text[1] = text[1].replace(" ", "")
        return "\n".join(text)

    def csv(self) -> str:
        """Comma-separated values."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """A ``tabular`` for the package ``booktabs``."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(re.sub(r"([%&_#$])", r"\\\1", cell) for cell in cells) + r" \\"

        columns = "l" + "r" * (len(self.head) - 1)
        body = [line(row) for row in self.rows]
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(self.head), r"\midrule", *body,
             r"\bottomrule", r"\end{tabular}", ""]
        )  # fmt: skip


_PACKAGES = (
    "llmdpd_torchrl", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "metaworld", "mujoco",
)  # fmt: skip


def summary_table(summary: ResultsSummary) -> Table:
    """A row a task under "seen tasks" and "unseen tasks", and each group's mean."""
    head = ("task", summary.measure, "n", "95 % interval", "mean length", "action change")
    rows = []
    for title, seen, group in (
        ("seen tasks", True, summary.seen),
        ("unseen tasks", False, summary.unseen),
    ):
        if group is None:
            continue
        rows.append((f"**{title}**", *[""] * (len(head) - 1)))
        for task in summary.tasks:
            if task.seen is seen:
                length = "-" if task.mean_length is None else f"{task.mean_length:.0f}"
                change = "-" if task.action_change is None else f"{task.action_change:.2f}"
                rows.append((task.task, *_cells(task), length, change))
        mean = f"**mean of {group.tasks} task{'s' if group.tasks > 1 else ''}**"
        rows.append((mean, *_cells(group), "", ""))
    return Table(head, rows)


def print_table(summary: ResultsSummary, console: Console | None = None) -> None:
    """Print :func:`summary_table` without its last column, which 80 columns have no room for."""
    table = summary_table(summary)
    narrow = Table(table.head[:-1], [row[:-1] for row in table.rows])
    (console or Console()).print(Markdown("\n\n".join([narrow.markdown(), *_notes(summary)])))


def acting_table(
    own: Sequence[EpisodeResult],
    ways: Mapping[str, Sequence[EpisodeResult]],
    groups: Mapping[str, Sequence[str]],
) -> Table:
    """How a policy does when it acts in other ways on the same episodes.

    Args:
        own: the episodes of its own way.
        ways: those of other ways, by their names.
        groups: tasks by group; empty ones are left out.
    """
    measures_scores = own[0].score is not None
    rows = []
    for way, episodes in ways.items():
        for group, tasks in groups.items():
            if not tasks:
                continue
            sides = [[e for e in side if e.task in tasks] for side in (own, episodes)]
            mine, other = (percents([side], scored=measures_scores) for side in sides)
            means = (f"{np.mean([*of.values()]):.1f}" for of in (mine, other))
            rows.append((way, group, *means, paired_difference(mine, other).text()))
    unit = "score" if measures_scores else "success %"
    return Table(("acting", "tasks", f"own {unit}", unit, "own minus it (95 % interval)"), rows)


def print_markdown(text: str) -> None:
    """Print Markdown as a terminal shows it."""
    Console().print(Markdown(text))


def write_markdown(summary: ResultsSummary, path: str | os.PathLike[str]) -> None:
    """Write :func:`summary_table` as GitHub-flavoured Markdown."""
    write_text(path, "\n\n".join([summary_table(summary).markdown(), *_notes(summary)]) + "\n")


def write_results_json(
    path: str | os.PathLike[str],
    summary: ResultsSummary,
    extra: Mapping[str, Any],
) -> None:
    """Write ``{"summary": ..., "versions": ..., **extra}``; fractions are 0 to 1, lengths in steps.

    ``extra`` is what else belongs to the result: seeds, episodes a task, the policy's settings.
    """
    write_json(path, {**extra, "summary": summary.to_dict(), "versions": versions()})


def read_results_json(path: str | os.PathLike[str]) -> tuple[ResultsSummary, dict[str, Any]]:
    """Read what :func:`write_results_json` wrote: the summary, and everything else.

    Raises:
        DataError: if the file is missing, no JSON, or no such result.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run an evaluation first") from error
    except ValueError as error:  # not JSON, or not text at all
        raise DataError(f"{path} is not JSON ({error}): run the evaluation again") from error
    if not isinstance(content, dict) or "summary" not in content:
        raise DataError(f'{path} has no "summary": it is not the results.json of an evaluation')
    try:
        summary = ResultsSummary.from_dict(content.pop("summary"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return summary, content


def git_revision() -> str | None:
    """Return the commit of the working tree this package lies in, ``None`` outside of one."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return git.stdout.strip() or None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[name] = "not installed"
    return found


def _cells(group: GroupSummary | TaskSummary) -> tuple[str, str, str]:
    value, _, interval = group.percent.text(1).partition(" ")
    return value, str(group.episodes), interval.strip("()")


def _notes(summary: ResultsSummary) -> Iterator[str]:
    errors = sum(task.errors for task in summary.tasks)
    if errors:
        verb = "episodes crashed and count" if errors > 1 else "episode crashed and counts"
        counted = "as not solved" if summary.measure == "success %" else "with a score of 0"
        yield f"{errors} {verb} {counted}; mean length and action change leave them out."


@dataclass(frozen=True)
class RunResults:
    """One ``results.json`` and what it says.

    Attributes:
        folder: where it lies, with the run's other files.
        name: of the run, its seed left out.
        seed: of its training.
        seen: the training tasks that were evaluated.
        unseen: the others.
        episodes: all of them.
        about: everything else in the file.
    """

    folder: Path
    name: str
    seed: int
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    episodes: tuple[EpisodeResult, ...]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class VariantResults:
    """Runs that differ in their seed alone.

    Attributes:
        name: of the runs.
        runs: by seed.
        summary: of all their episodes together.
    """

    name: str
    runs: tuple[RunResults, ...]
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


class _Run(BaseModel):
    """What a report needs of a ``results.json`` besides the summary."""

    name: str
    seed: int
    episodes: tuple[EpisodeResult, ...]


def find_runs(folder: str | Path) -> list[RunResults]:
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


def _read(file: Path) -> RunResults:
    summary, about = read_results_json(file)
    try:
        run = _Run.model_validate(about)
        del about["episodes"]
    except ValidationError as error:
        raise DataError(f"{file}: {wrong_entry(error)}; evaluate again") from None
    # With other prompts, it is another variant.
    control = about.get("control", "both")
    name = re.sub(rf"[-_]?seed{run.seed}(?=$|[-_ ])", "", run.name) + (
        "" if control == "both" else f" {control}"
    )
    return RunResults(
        file.parent, name, run.seed,
        tuple(task.task for task in summary.tasks if task.seen),
        tuple(task.task for task in summary.tasks if not task.seen),
        run.episodes, about,
    )  # fmt: skip


def variants(runs: Sequence[RunResults]) -> list[VariantResults]:
    """Runs by name.

    Raises:
        DataError: if two runs of a name have the same seed, or other tasks or goals.
    """
    groups: dict[str, list[RunResults]] = {}
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
        found.append(VariantResults(name, tuple(members), summary))
    return found


def _same_episodes(one: RunResults, other: RunResults) -> bool:
    """Whether the same goals were evaluated in the same way."""
    goals = [{(e.task, e.goal_index) for e in run.episodes} for run in (one, other)]
    return goals[0] == goals[1] and all(
        one.about.get(key) == other.about.get(key) for key in ("starts", "evaluation")
    )
