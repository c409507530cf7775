"""Plots of evaluations and trainings, made without a screen and without pyplot's global state."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from llmdpd_torchrl.evaluation.results import VariantResults
from llmdpd_torchrl.evaluation.statistics import GroupSummary, ResultsSummary, TaskSummary
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_atomic

# Okabe and Ito's blue and vermilion: distinct in every common colour blindness and in grey.
SEEN_COLOUR = "#0072B2"
UNSEEN_COLOUR = "#D55E00"


def plot_success_bars(
    summary: ResultsSummary,
    path: str | os.PathLike[str],
    title: str = "Success rate by task",
) -> None:
    """Plot a bar a task, success or score, with its interval, and the groups' means."""
    groups = [
        (label, colour, [task for task in summary.tasks if task.seen is seen], group)
        for label, colour, seen, group in (
            ("seen", SEEN_COLOUR, True, summary.seen),
            ("unseen", UNSEEN_COLOUR, False, summary.unseen),
        )
        if group is not None
    ]
    rows = len(summary.tasks) + 1.3 * len(groups)
    figure = Figure(figsize=(7.5, 1.3 + 0.26 * rows), layout="constrained")
    axes = figure.add_subplot()
    ticks: list[float] = []
    top = 0.0
    for label, colour, tasks, group in groups:
        # The heading takes the place of a legend; it stands on the row above the group's bars.
        axes.text(0, top, _heading(label, group), color=colour, fontweight="bold", va="center")
        positions = [top + 1 + index for index in range(len(tasks))]
        _plot_group(axes, positions, tasks, group, colour)
        ticks += positions
        top = positions[-1] + 1.3
    axes.set_yticks(ticks, [task.task for task in summary.tasks])
    axes.set_ylim(top - 0.7, -0.6)
    if summary.measure == "success %":
        axes.set_xlim(0, 100)
        axes.set_xlabel("success rate (%)")
    else:
        axes.axvline(100, color="0.6", linewidth=0.8)
        axes.set_xlabel("normalised score (0: random, 100: the reference)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle("\n".join(textwrap.wrap(title, 70)), fontsize=12)
    figure.supxlabel(_caption(summary), fontsize=8, color="0.35")
    save_figure(figure, path)


def _plot_group(
    axes: Axes,
    positions: Sequence[float],
    tasks: Sequence[TaskSummary],
    group: GroupSummary,
    colour: str,
) -> None:
    values, low, high = np.array([task.percent for task in tasks]).T
    axes.barh(
        positions,
        values,
        height=0.66,
        color=colour,
        alpha=0.65,
        xerr=np.maximum([values - low, high - values], 0),  # at 0 and 1 rounding leaves -1e-17
        error_kw={"ecolor": "0.15", "elinewidth": 1.1, "capsize": 2.5, "zorder": 4},
    )
    mean = [group.percent.value] * 2
    ends = [positions[0] - 0.5, positions[-1] + 0.5]
    halo = Stroke(linewidth=3.5, foreground="white")  # keeps the line apart from its own bars
    axes.plot(
        mean,
        ends,
        color=colour,
        linestyle=(0, (4, 1.5)),
        linewidth=1.8,
        zorder=3,
        path_effects=[halo, Normal()],
    )


def _heading(label: str, group: GroupSummary) -> str:
    mean, low, high = group.percent
    tasks = f"{group.tasks} {label} task{'s' if group.tasks > 1 else ''}"
    unit = "" if group.score is not None else " %"
    limits = "" if np.isnan(low) else f" (95 % interval {low:.0f} to {high:.0f})"
    return f"{tasks}: mean {mean:.0f}{unit}{limits}"


def _caption(summary: ResultsSummary) -> str:
    counts = sorted({task.episodes for task in summary.tasks})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    kind = "Wilson" if summary.measure == "success %" else "t"
    return f"n = {many} episodes a task; whiskers: 95 % {kind} intervals; dashed: group means"


def plot_learning_curves(metrics_csv: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Plot every metric of a ``metrics.csv`` over the updates, each in a panel of its own.

    Metrics with more than 50 points are faint, with a moving average over the neighbouring
    2 % of the points on top; the figure says so.

    Raises:
        DataError: if the file is missing, damaged, or has no metric with a finite value.
    """
    steps, columns = read_metrics(metrics_csv)
    curves = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not curves:
        raise DataError(
            f"{metrics_csv} has no values to plot: train for longer than one log interval"
        )
    names = sorted(curves, key=_panel_order)
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.4 * across, 0.7 + 2.1 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    smoothed = False
    for axes, name in zip(panels, names, strict=False):
        smoothed |= _plot_curve(axes, steps, curves[name])
        axes.set_title(name, fontsize=9)
        if "success" in name and np.nanmin(curves[name]) >= 0 and np.nanmax(curves[name]) <= 1:
            axes.set_ylim(-0.03, 1.03)  # all rates on one scale
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    for index, axes in enumerate(panels):
        axes.set_visible(index < len(names))
        if index + across >= len(names):  # the lowest panel of its column
            axes.set_xlabel("update", fontsize=9)
            axes.tick_params(labelbottom=True)
    if smoothed:
        handles = [
            Line2D([], [], color=SEEN_COLOUR, alpha=0.3, label="logged"),
            Line2D([], [], color=SEEN_COLOUR, label="moving average over 2 % of the points"),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    save_figure(figure, path)


def _plot_curve(axes: Axes, steps: np.ndarray, values: np.ndarray) -> bool:
    """Plot one metric; returns whether it was smoothed."""
    there = np.isfinite(values)
    x, y = steps[there], values[there]
    window = max(1, round(0.02 * len(y)))
    smooth = window > 1 and len(y) > 50
    if smooth:
        axes.plot(x, y, color=SEEN_COLOUR, alpha=0.3, linewidth=0.8)
        axes.plot(x, _moving_average(y, window), color=SEEN_COLOUR, linewidth=1.4)
    else:
        axes.plot(x, y, color=SEEN_COLOUR, linewidth=1.4, marker="o", markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return smooth


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Average over ``window`` points around each one; fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _panel_order(name: str) -> tuple[int, str]:
    """Success and score first, then losses, then the rest."""
    for rank, word in enumerate(("success", "score", "loss")):
        if word in name:
            return rank, name
    return 3, name


def plot_profiles(variants: Sequence[VariantResults], path: str | os.PathLike[str]) -> None:
    """Plot, for each variant, the share of tasks and seeds above every success rate.

    A curve further up and right is better; where it falls, it says whether a mean comes from some
    tasks or from all (Agarwal et al. 2021).
    """
    thresholds = np.linspace(0, 1, 101)
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    styles = ["-", "--", "-.", ":"]
    for number, variant in enumerate(variants):
        axes.step(
            100 * thresholds,
            100 * variant.profile(thresholds),
            where="post",
            label=variant.name,
            linestyle=styles[number // 8 % len(styles)],
        )
    axes.set(xlim=(0, 100), ylim=(-2, 102))
    axes.set(xlabel="success rate (%) or score, τ", ylabel="tasks and seeds above τ (%)")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_prompt_map(
    embeddings: torch.Tensor,
    tasks: Sequence[str],
    seen: Sequence[bool],
    path: str | os.PathLike[str],
) -> None:
    """Plot prompt embeddings ``[T, D]``: close points are similar prompts to the policy."""
    centred = embeddings.detach().double() - embeddings.detach().double().mean(0)
    _, scales, axes_of = torch.linalg.svd(centred, full_matrices=False)
    # A tiny map has no second component.
    points = torch.nn.functional.pad(centred @ axes_of[:2].T, (0, 2))[:, :2].numpy()
    shares = [*(scales.square() / scales.square().sum().clamp_min(1e-30)).tolist(), 0.0]
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.add_subplot()
    for is_seen, colour, label in ((True, SEEN_COLOUR, "seen"), (False, UNSEEN_COLOUR, "unseen")):
        rows = [row for row, flag in enumerate(seen) if bool(flag) is is_seen]
        if rows:
            axes.scatter(points[rows, 0], points[rows, 1], color=colour, s=18, label=label)
    for (x, y), task in zip(points, tasks, strict=True):
        axes.annotate(
            task.removesuffix("-v3"), (x, y), xytext=(3, 2), textcoords="offset points", fontsize=7
        )
    axes.set(xlabel=f"{100 * shares[0]:.0f} % of the spread")
    axes.set(ylabel=f"{100 * shares[1]:.0f} % of the spread")
    axes.set_title("prompts, first two principal components", fontsize=11)
    axes.legend(frameon=False)
    axes.grid(color="0.94")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_confusion(
    rates: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str], episodes: int
) -> None:
    """Plot every task's result under every task's prompts: diagonal if the policy reads them.

    ``rates`` are fractions by task, then by the task whose prompts were used.
    """
    tasks = list(rates)
    table = 100 * np.array([[rates[task][other] for other in tasks] for task in tasks])
    size = 2.2 + 0.42 * len(tasks)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, vmin=0, vmax=100, cmap="cividis")
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if value < 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    names = [task.removesuffix("-v3") for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(tasks)), names, fontsize=8)
    axes.set(xlabel="prompted with", ylabel="task")
    figure.colorbar(image, ax=axes, label=f"success % or score, {episodes} episodes", shrink=0.8)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically."""
    FigureCanvasAgg(figure)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, dpi=150))
