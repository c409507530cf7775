"""Figures and tables that follow from stored episodes, in ``results/`` and in the README."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import RESULTS, write_figures, write_readme_table
from benchmarks.studies.judge import Side, mean, scores, sides_of
from benchmarks.studies.page import figures as page_figures
from benchmarks.studies.page import summary
from benchmarks.studies.registry import Study
from benchmarks.studies.store import Store
from llmdpd_torchrl.evaluation.comparison import paired_difference, successes
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.evaluation.statistics import Estimate, student_interval
from llmdpd_torchrl.utils.files import write_atomic, write_text

COMMAND = "python -m benchmarks.studies --page"
#: Files of figures: of all that is on the page, and of the folders that have their own.
NAMES = ("results", "unseen", "unseen_validation", "d4rl_velocity", "d4rl_levels")
#: The arms of a table of scores, in its order.
COLUMNS = ("none", "wrong_prompt", "text", "trajectory", "both", "oracle")
#: The arms of the plot of unseen tasks.
CONTROLS = ("both", "text", "trajectory", "none", "wrong")


class Row(NamedTuple):
    """One arm that is stored, and the study that it belongs to."""

    study: Study
    side: Side


def rows_of(folder: str, studies: Mapping[str, Study], store: Store) -> list[Row]:
    """All stored arms of a folder."""
    return [
        Row(study, side)
        for study in studies.values()
        if study.folder == folder and not study.module
        for side in sides_of(study, store)
        if side.runs
    ]


def all_figures(studies: Mapping[str, Study], store: Store) -> dict[str, dict[str, float]]:
    """By file, all figures that follow from the stored episodes."""
    return {"results": page_figures(studies, store)[0], **folder_figures(studies, store)}


def folder_figures(studies: Mapping[str, Study], store: Store) -> dict[str, dict[str, float]]:
    """The figures of the folders that have their own, by file."""
    found = {}
    for name in NAMES[1:]:
        if rows := rows_of(name, studies, store):
            make = score_figures if rows[0].study.measures_scores else success_figures
            found[name] = make(rows, store)
    return found


def success_figures(rows: Sequence[Row], store: Store) -> dict[str, float]:
    """Success rates in percent, seeds, minutes of training, and ours minus retrieve and play."""
    found: dict[str, float] = {}
    runs = {}
    for study, side in rows:
        variant, arm, group = side.variant.name, side.arm.name, side.arm.group
        found[_name_of(side)] = mean(study, side).value
        found[f"seeds_{group}_{variant}_{arm}"] = len(side.runs)
        runs[variant, arm, group] = [side.runs[seed] for seed in sorted(side.runs)]
    for variant, trainings in _trainings(rows, store).items():
        if seconds := [t["train_seconds"] for t in trainings if t["train_seconds"]]:
            found[f"train_minutes_{variant}"] = statistics.mean(seconds) / 60
    if "unseen_retrieved_none" in found:
        found["unseen_no_prompt"] = found["unseen_retrieved_none"]
    ours = runs.get(("retrieved", "both", "unseen"))
    theirs = runs.get(("retrieve_and_play", "trajectory", "unseen"))
    if ours and theirs:
        # Ours is the mean over its seeds, which the interval takes as they are.
        difference = paired_difference(successes(ours), successes(theirs))
        found["retrieved_minus_retrieve_and_play_low"] = 100 * difference.low
        found["retrieved_minus_retrieve_and_play_high"] = 100 * difference.high
    return found


def _name_of(side: Side) -> str:
    """The figure of an arm; all prompts that a variant reads are not named."""
    arm = "wrong_prompt" if side.arm.name == "wrong" else side.arm.name
    name = f"{side.arm.group}_{side.variant.name}"
    return name if side.arm.name == _own(side) else f"{name}_{arm}"


def _own(side: Side) -> str:
    return "both" if side.variant.policy == "trained" else "trajectory"


def score_figures(rows: Sequence[Row], store: Store) -> dict[str, float]:
    """Scores with their intervals over seeds, and the smallest budget of all policies."""
    found: dict[str, float] = {}
    for study, side in rows:
        label, _, policy = side.variant.name.rpartition("-")
        name = side.arm.name if label == "speeds" else f"{label}_{side.arm.name}".replace("-", "_")
        value, low, high = mean(study, side)
        found[name] = value
        if not math.isnan(low):
            found |= {f"{name}_low": low, f"{name}_high": high}
    trainings = _trainings(rows, store)
    flat = [one for some in trainings.values() for one in some]
    goals = [np.shape(task)[-1] for study, side in rows for task in scores(study, side).values()]
    found |= {
        "policies": len(flat),
        "updates": min(one["updates"] for one in flat),
        "episodes_per_task": min(goals),
    }
    for variant, some in trainings.items():
        label, _, policy = variant.rpartition("-")
        if label == "speeds":
            found[f"seeds_{policy}"] = len(some)
            seconds = statistics.mean(one["train_seconds"] for one in some)
            found[f"train_minutes_{policy}"] = seconds / 60
    return found


def _trainings(rows: Sequence[Row], store: Store) -> dict[str, list[dict[str, Any]]]:
    """By variant, what is known of its trainings."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for study, side in rows:
        for seed in side.runs:
            about = store.training(study, side.variant, seed)
            if about:
                found.setdefault(side.variant.name, {})[seed] = about
    return {variant: list(by_seed.values()) for variant, by_seed in found.items()}


def speed_table(rows: Sequence[Row]) -> Table:
    """A row a speed, and their mean."""
    cells: dict[str, dict[str, Estimate]] = {}
    for study, side in rows:
        for task, found in scores(study, side).items():
            means = np.asarray(found).mean(-1).tolist()
            cells.setdefault(task, {})[side.arm.name] = student_interval(means)
    cells["mean of four speeds"] = {row.side.arm.name: mean(*row) for row in rows}
    head = ("score (95 % interval over seeds)", *(name.replace("_", " ") for name in COLUMNS))
    return Table(head, [(task, *_texts(by, COLUMNS)) for task, by in cells.items()])


def level_tables(rows: Sequence[Row]) -> list[Table]:
    """The shift to the expert's level, and the files."""
    cells: dict[tuple[str, str], dict[str, Estimate]] = {}
    for study, side in rows:
        kind, _, label = side.variant.name.rpartition("-")[0].partition("-")
        cells.setdefault((kind, label), {})[side.arm.name] = mean(study, side)
    shift, files = (
        [(label, *_texts(by, columns)) for (k, label), by in sorted(cells.items()) if k == kind]
        for kind, columns in (("shift", COLUMNS), ("file", ("unprompted",)))
    )
    head = ("the expert as the target", *(name.replace("_", " ") for name in COLUMNS))
    return [Table(head, shift), Table(("file", "score"), files)]


def _texts(by_arm: Mapping[str, Estimate], columns: Sequence[str]) -> list[str]:
    return [by_arm[arm].text() if arm in by_arm else "-" for arm in columns]


def success_tables(rows: Sequence[Row]) -> list[Table]:
    """All arms on unseen tasks, task by task, and on seen ones."""
    rows = sorted(rows, key=lambda row: (row.side.variant.name, row.side.arm.name))
    by_group: dict[str, list[tuple[str, ...]]] = {"unseen": [], "seen": []}
    tasks: list[str] = []
    for study, side in rows:
        found = scores(study, side)
        each = []
        if side.arm.group == "unseen":
            tasks = sorted(found)
            each = [f"{np.asarray(found[task]).mean():.0f}" for task in tasks]
        line = side.variant.name, side.arm.name, *each, _range(mean(study, side))
        by_group[side.arm.group].append(line)
    head = "variant", "prompted with"
    return [
        Table((*head, *tasks, "unseen, % (95 %)"), by_group["unseen"]),
        Table((*head, "seen, % (95 %)"), by_group["seen"]),
    ]


def _range(found: Estimate) -> str:
    return f"{found.value:.0f} ({found.low:.0f}-{found.high:.0f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of all variants under all controls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    values = {(s.variant.name, s.arm.name): mean(study, s).value for study, s in rows
              if s.arm.group == "unseen"}  # fmt: skip
    variants = list(dict.fromkeys(variant for variant, _ in values))
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        heights = [values.get((variant, control), math.nan) for control in CONTROLS]
        places = [index + (number - 1) * width for index in range(len(CONTROLS))]
        bars = axis.bar(places, heights, width, label=variant.replace("_", " "))
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(CONTROLS)), CONTROLS)
    axis.set(ylabel="success on unseen tasks, %", ylim=(0, 105), xlabel="prompts")
    axis.legend()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def publish(studies: Mapping[str, Study], store: Store) -> None:
    """Write the figures that have changed, and all tables that follow from the stored files."""
    table = summary(studies["comparison"], store).markdown()
    write_readme_table("studies comparison", table.splitlines())
    write_changed("results", *page_figures(studies, store))
    for name, found in folder_figures(studies, store).items():
        rows = rows_of(name, studies, store)
        is_new = write_changed(name, found, stored_files(name, store))
        if name == "d4rl_velocity":
            tables = [speed_table(rows).markdown()]
            write_readme_table("studies speeds", tables[0].splitlines())
        elif name == "d4rl_levels":
            tables = [table.markdown() for table in level_tables(rows)]
        else:
            tables = [table.markdown(texts=2) for table in success_tables(rows)]
            if is_new:
                plot(rows, RESULTS / f"{name}.png")
        write_text(RESULTS / f"{name}.md", "\n\n".join(tables) + "\n")


def figures_of(label: str, found: Estimate | None) -> dict[str, float]:
    """A value and the limits of its interval, if there are any."""
    if found is None:
        return {}
    limits = {f"{label}_low": found.low, f"{label}_high": found.high}
    return {label: found.value, **{k: v for k, v in limits.items() if not math.isnan(v)}}


def stored_files(folder: str, store: Store) -> dict[str, str]:
    """The files of episodes in a folder of the store, by name, as figures name them."""
    files = sorted((store.root / folder).glob("*.csv"))
    return {path.stem: f"{folder}/{path.name}" for path in files}


def write_changed(name: str, found: Mapping[str, float], raw: Mapping[str, str]) -> bool:
    """Write a file of figures unless they are those of the committed one; returns whether."""
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text())["figures"] if path.exists() else {}
    same = old.keys() == found.keys()
    if same and all(math.isclose(old[key], found[key], rel_tol=1e-9) for key in found):
        return False
    write_figures(name, found, raw, COMMAND)
    return True
