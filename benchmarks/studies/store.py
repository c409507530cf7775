"""The kept files of a comparison: what is there, what is missing, what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.episodes import read_episodes
from benchmarks.studies.registry import Arm, Experiment, Variant
from llmdpd_torchrl.evaluation.statistics import EpisodeResult


@dataclass(frozen=True)
class Store:
    """The folder ``benchmarks/results``, with a folder for each benchmark's kept files."""

    root: Path

    def path(self, experiment: Experiment, variant: Variant, seed: int, arm: Arm) -> Path:
        """The episodes of an arm."""
        name = f"{variant.name}-seed{seed}-{arm.name}"
        if experiment.measure == "success":  # files of scores are all of what is held out
            name += f"-{arm.group}"
        return self.root / experiment.folder / f"{name}.csv"

    def training_path(self, experiment: Experiment, variant: Variant, seed: int) -> Path:
        """What there is to say about a training."""
        return self.root / experiment.folder / f"{variant.name}-seed{seed}-training.json"

    def training(self, experiment: Experiment, variant: Variant, seed: int) -> dict[str, Any]:
        """The same, read; empty if it is not there."""
        path = self.training_path(experiment, variant, seed)
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(
        self, experiment: Experiment, variant: Variant, seed: int, arm: Arm
    ) -> list[EpisodeResult]:
        """The episodes of an arm that are there, of as many goals a task as are asked for."""
        path = self.path(experiment, variant, seed, arm)
        if not path.exists():
            return []
        return [e for e in read_episodes(path) if e.goal_index < experiment.episodes_of(arm)]

    def episodes(
        self, experiment: Experiment, variant: Variant, seed: int, arm: Arm
    ) -> list[EpisodeResult] | None:
        """The same, if they are all there: every task, each with all its goals."""
        rows = self.rows(experiment, variant, seed, arm)
        told = self.training(experiment, variant, seed).get(f"{arm.group}_tasks")
        tasks = {row.task for row in rows} if told is None else set(told)
        if not rows or len(rows) != len(tasks) * experiment.episodes_of(arm):
            return None
        return rows

    def missing(self, experiment: Experiment, variant: Variant, seed: int) -> list[Arm]:
        """The arms that are not there, or not whole."""
        return [
            arm for arm in variant.arms if self.episodes(experiment, variant, seed, arm) is None
        ]
