"""Report of a folder of runs: comparison tables, plots, and one HTML page that contains them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from llmdpd_torchrl.evaluation.comparison import Scores, interquartile_mean, paired_difference
from llmdpd_torchrl.evaluation.plots import (
    plot_confusion,
    plot_learning_curves,
    plot_profiles,
    plot_prompt_map,
    plot_success_bars,
)
from llmdpd_torchrl.evaluation.results import (
    RunResults,
    Table,
    VariantResults,
    find_runs,
    variants,
)
from llmdpd_torchrl.evaluation.statistics import GroupSummary
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_text

_TYPES = {".png": "image/png", ".mp4": "video/mp4"}
#: Size of a page that mail programs and browser tabs still open.
_MAX_PAGE_BYTES = 25_000_000


def write_report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Turn all runs below a folder into one report.

    Args:
        folder: of runs, each with a ``results.json`` and, where they are, ``metrics.csv``,
            ``checkpoint/``, ``confusion.json`` and ``*.mp4``.
        output: folder of the report: ``report.html``, which holds everything else, tables as
            ``.md``, ``.csv`` and ``.tex``, and plots. Default: ``report`` in ``folder``.

    Returns:
        the path of the page.

    Raises:
        DataError: if there is no run, or its files are damaged.
    """
    folder = Path(folder)
    output = folder / "report" if output is None else Path(output)
    found = variants(find_runs(folder))
    output.mkdir(parents=True, exist_ok=True)
    tables = {"comparison": compare(found), "tasks": task_table(found)}
    for name, table in tables.items():
        write_text(output / f"{name}.md", table.markdown() + "\n")
        write_text(output / f"{name}.csv", table.csv())
        write_text(output / f"{name}.tex", table.latex())
    page = output / "report.html"
    write_text(page, _page(folder.resolve().name, found, tables, _figures(found, output)))
    return page


def _figures(found: Sequence[VariantResults], output: Path) -> list[dict[str, Any]]:
    """What the template needs of each image and video; what fits into the page as data URIs."""
    figures: list[dict[str, Any]] = []
    left = _MAX_PAGE_BYTES

    def add(path: Path, title: str, explanation: str) -> None:
        nonlocal left
        kind, size = _TYPES[path.suffix], path.stat().st_size * 4 // 3  # as text
        data = None
        if size <= left:
            left -= size
            data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        figures.append({
            "title": title, "explanation": explanation, "path": os.path.relpath(path, output),
            "is_video": kind.startswith("video"), "data": data,
        })  # fmt: skip

    if len(found) > 1 or len(found[0].summary.tasks) > 1:
        path = output / "profiles.png"
        plot_profiles(found, path)
        add(path, "How results are spread", "The share of tasks (and seeds) whose success rate, or "
            "score, is above the value on the axis: further up and right is better.")  # fmt: skip
    slugs: set[str] = set()
    for variant in found:
        slug = _slug(variant.name)
        if slug in slugs:
            slug += f"-{len(slugs)}"
        slugs.add(slug)
        path = output / f"success-{slug}.png"
        plot_success_bars(variant.summary, path, title=f"Success by task: {variant.name}")
        add(path, f"Success by task: {variant.name}", "Bars are success rates, or mean normalised "
            "scores, over all episodes and seeds, with 95 % intervals. Unseen tasks were never "
            "trained on.")  # fmt: skip
        run = variant.runs[0]
        if (run.folder / "metrics.csv").exists():
            path = output / f"learning-{slug}.png"
            plot_learning_curves(run.folder / "metrics.csv", path)
            add(path, f"Training: {variant.name}, seed {run.seed}", "Losses and other measures "
                "over the updates.")  # fmt: skip
        if (run.folder / "confusion.json").exists():
            path = output / f"confusion-{slug}.png"
            episodes = _plot_confusion_file(run.folder / "confusion.json", path)
            add(path, f"Tasks under others' prompts: {variant.name}", "Each task's success in "
                f"{episodes} episodes, with the prompts of the task below. A policy that reads its "
                "prompt succeeds on the diagonal only.")  # fmt: skip
        path = output / f"prompts-{slug}.png"
        if _plot_texts(variant, path):
            add(path, f"The texts as the policy sees them: {variant.name}", "Each task's text "
                "after the trained head. Tasks that lie close have similar prompts.")  # fmt: skip
        for video in sorted(run.folder.glob("*.mp4")):
            add(video, f"Episodes: {variant.name}, seed {run.seed}", "The first evaluation goal of "
                "each task, the task's text below, and how it ended. Where actions are sampled, it "
                "is another sample than the evaluation's.")  # fmt: skip
    return figures


def _plot_confusion_file(file: Path, path: Path) -> int:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        plot_confusion(content["rates"], path, content["episodes"])
        return int(content["episodes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error!r}): evaluate again") from None


def _plot_texts(variant: VariantResults, path: Path) -> bool:
    """Plot the texts after the policy's head, if it has one and its embeddings are stored."""
    folder = variant.runs[0].folder / "checkpoint"
    tasks = [*variant.runs[0].seen, *variant.runs[0].unseen]
    if not LLMDPDPolicy.is_saved(folder) or not set(tasks) <= set(METAWORLD_TASKS.names):
        return False
    policy = LLMDPDPolicy.from_pretrained(folder)
    encoder = policy.info.get("text_encoder")
    if policy.encoder is None or policy.encoder.text is None or encoder != "smollm2":
        return False
    table = text_embedding_table(tasks)
    with torch.no_grad():
        features = policy.encoder.text(table)
    seen = [task in variant.runs[0].seen for task in tasks]
    plot_prompt_map(features, tasks, seen, path)
    return True


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _page(
    title: str,
    found: Sequence[VariantResults],
    tables: dict[str, Table],
    figures: list[dict[str, Any]],
) -> str:
    runs = [run for variant in found for run in variant.runs]
    crashed = [e for run in runs for e in run.episodes if e.error is not None]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmdpd_torchrl.evaluation", "."),
        autoescape=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        episodes=sum(len(run.episodes) for run in runs),
        policies=len(runs),
        **tables,
        crashed=len(crashed),
        reasons=sorted({f"{e.task}: {e.error}" for e in crashed}),
        figures=figures,
        commands=sorted({" ".join(run.about.get("command", [])) for run in runs} - {""}),
    )


def compare(found: Sequence[VariantResults]) -> Table:
    """A row a variant: success, or score, on seen and unseen tasks; difference to the first.

    Intervals are of 95 %. Those of the means treat the policies as fixed and the episodes as random
    (see :func:`summarise`); that of the interquartile mean, from two seeds on, is over both;
    the difference is paired by goals, on the tasks of the named group.
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


def _against(variant: VariantResults, first: VariantResults, group: str) -> tuple[str, str]:
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


def _same_starts(one: RunResults, other: RunResults, scores: Scores, theirs: Scores) -> bool:
    """Whether the tasks of two groups were evaluated on the same goals."""
    if {task: np.shape(rows)[-1] for task, rows in scores.items()} != {
        task: np.shape(rows)[-1] for task, rows in theirs.items()
    }:
        return False
    starts = [run.about.get("starts") or {} for run in (one, other)]
    return all(starts[0].get(task) == starts[1].get(task) for task in scores)


def task_table(found: Sequence[VariantResults]) -> Table:
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
