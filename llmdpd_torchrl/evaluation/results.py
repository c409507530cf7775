"""An evaluation as a table in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from llmdpd_torchrl.evaluation.statistics import GroupSummary, ResultsSummary, TaskSummary
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_json, write_text

__all__ = [
    "git_revision",
    "print_table",
    "read_results_json",
    "versions",
    "write_markdown",
    "write_results_json",
]

_PACKAGES = (
    "llmdpd_torchrl",
    "torch",
    "torchrl",
    "tensordict",
    "numpy",
    "gymnasium",
    "metaworld",
    "mujoco",
)


def print_table(summary: ResultsSummary, console: Console | None = None) -> None:
    """Print one row a task under "seen tasks" and "unseen tasks", and each group's mean.

    Args:
        summary: what to print.
        console: where to; by default the standard output. 80 columns are enough.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = _columns(summary)[:-1]  # the last is for wider pages
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for title, tasks, group in _groups(summary):
        table.add_row(f"[bold]{title}[/bold]")
        for task in tasks:
            table.add_row(f"  {task.task}", *_task_cells(task)[:-1])
        table.add_row(
            f"  [bold]{_mean_label(group)}[/bold]", *_group_cells(group)[:-1], end_section=True
        )
    console = console or Console()
    console.print(table)
    for note in _notes(summary):
        console.print(note, style="dim")


def write_markdown(summary: ResultsSummary, path: str | os.PathLike[str]) -> None:
    """Write the same table as GitHub-flavoured Markdown."""
    columns = _columns(summary)
    lines = [
        "| " + " | ".join(columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
    ]
    for title, tasks, group in _groups(summary):
        lines.append(f"| **{title}** |" + " |" * (len(columns) - 1))
        lines += [f"| {' | '.join((task.task, *_task_cells(task)))} |" for task in tasks]
        lines.append(f"| **{_mean_label(group)}** | {' | '.join(_group_cells(group))} |")
    for note in _notes(summary):
        lines += ["", note]
    text = "\n".join(lines) + "\n"
    write_text(path, text)


def write_results_json(
    path: str | os.PathLike[str],
    summary: ResultsSummary,
    extra: Mapping[str, Any],
) -> None:
    """Write ``{"summary": ..., "versions": ..., **extra}``; fractions are 0 to 1, lengths in steps.

    Args:
        path: the file to make.
        summary: the evaluation.
        extra: what else belongs to the result: seeds, episodes a task, the policy's settings.

    Raises:
        ValueError: if ``extra`` has a key "summary" or "versions".
    """
    ours = {"summary": summary.to_dict(), "versions": versions()}
    if ours.keys() & extra.keys():
        raise ValueError(f"extra may not replace {sorted(ours.keys() & extra.keys())}")
    write_json(path, {**extra, **ours})


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


def _columns(summary: ResultsSummary) -> tuple[str, ...]:
    return "task", summary.measure, "n", "95 % interval", "mean length", "action change"


def _groups(summary: ResultsSummary) -> Iterator[tuple[str, Sequence[TaskSummary], GroupSummary]]:
    for title, seen, group in (
        ("seen tasks", True, summary.seen),
        ("unseen tasks", False, summary.unseen),
    ):
        if group is not None:
            yield title, [task for task in summary.tasks if task.seen is seen], group


def _task_cells(task: TaskSummary) -> tuple[str, ...]:
    length = "-" if task.mean_length is None else f"{task.mean_length:.0f}"
    change = "-" if task.action_change is None else f"{task.action_change:.2f}"
    return *_group_cells(task)[:3], length, change


def _group_cells(group: GroupSummary | TaskSummary) -> tuple[str, ...]:
    value, _, interval = group.percent.text(1).partition(" ")
    return value, str(group.episodes), interval.strip("()"), "", ""


def _mean_label(group: GroupSummary) -> str:
    return f"mean of {group.tasks} task{'s' if group.tasks > 1 else ''}"


def _notes(summary: ResultsSummary) -> Iterator[str]:
    errors = sum(task.errors for task in summary.tasks)
    if errors:
        verb = "episodes broke off and count" if errors > 1 else "episode broke off and counts"
        counted = "as not solved" if summary.measure == "success %" else "with a score of 0"
        yield f"{errors} {verb} {counted}; mean length and action change leave them out."
