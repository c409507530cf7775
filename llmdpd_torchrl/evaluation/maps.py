"""Plots of several runs and of prompts: profiles, the prompts' map, tasks under others' prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from llmdpd_torchrl.evaluation.plots import SEEN_COLOUR, UNSEEN_COLOUR, save_figure
from llmdpd_torchrl.evaluation.runs import Variant

__all__ = ["plot_confusion", "plot_profiles", "plot_prompt_map"]


def plot_profiles(variants: Sequence[Variant], path: str | os.PathLike[str]) -> None:
    """Draw, for each variant, the share of tasks and seeds above every success rate.

    A curve further up and right is better; where it falls tells whether a mean comes from some
    tasks or from all (Agarwal et al. 2021).

    Args:
        variants: at least one.
        path: image file; the suffix is the format.
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
    title: str = "prompts, first two principal components",
) -> None:
    """Draw prompts as points: what lies close, the policy is told alike.

    Args:
        embeddings: ``[T, D]``, a row a task.
        tasks: their names.
        seen: whether the policy was trained on each.
        path: image file; the suffix is the format.
        title: headline.
    """
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
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    axes.grid(color="0.94")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_confusion(
    rates: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str], episodes: int
) -> None:
    """Draw results of every task under every task's prompts: a policy that reads is a diagonal.

    Args:
        rates: by task, then by whose prompts were shown; fractions.
        path: image file; the suffix is the format.
        episodes: of each cell.
    """
    tasks = list(rates)
    table = 100 * np.array([[rates[task][shown] for shown in tasks] for task in tasks])
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
    axes.set(xlabel="prompts shown", ylabel="task")
    figure.colorbar(image, ax=axes, label=f"success % or score, {episodes} episodes", shrink=0.8)
    save_figure(figure, path)
