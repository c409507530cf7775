"""The files that an evaluation leaves in a folder, whichever command it was part of."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdpd_torchrl.evaluation.plots import plot_learning_curves, plot_success_bars
from llmdpd_torchrl.evaluation.results import print_table, write_markdown, write_results_json
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, ResultsSummary, summarise
from llmdpd_torchrl.evaluation.suites import Suite


def write_evaluation(
    folder: Path,
    episodes: Sequence[EpisodeResult],
    suite: Suite,
    *,
    seen: Sequence[str],
    unseen: Sequence[str],
    about: Mapping[str, Any],
    note: str = "",
) -> ResultsSummary:
    """Write ``results.json``, ``results.md`` and plots of an evaluation, and print its table.

    Args:
        folder: to write into; learning curves are plotted where it has a ``metrics.csv``.
        episodes: all of them.
        suite: that they were run in.
        seen: the evaluated tasks that the policy was trained on.
        unseen: the others.
        about: further entries of ``results.json``, ``name`` and ``seed`` of the training among
            them, which a report reads.
        note: added to the plot's title.
    """
    summary = summarise(episodes, seen, unseen)
    extra = {
        **about,
        "command": ["python", *sys.argv],
        "starts": suite.starts(),
        "episodes": [dataclasses.asdict(episode) for episode in episodes],
    }
    write_results_json(folder / "results.json", summary, extra)
    write_markdown(summary, folder / "results.md")
    measure = "Success" if summary.measure == "success %" else "Score"
    plot_success_bars(
        summary, folder / "success.png", title=f"{measure} by task: {about['name']}{note}"
    )
    if (folder / "metrics.csv").exists():
        plot_learning_curves(folder / "metrics.csv", folder / "learning_curves.png")
    print_table(summary)
    return summary
