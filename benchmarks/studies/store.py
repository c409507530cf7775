"""The stored files of all studies: episodes by arm, and what is known of each training."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.studies.registry import Arm, Study, Variant
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.utils.files import write_atomic


def write_episodes(path: Path, episodes: Sequence[EpisodeResult]) -> None:
    """Write a CSV file, a row an episode."""
    names = [field.name for field in fields(EpisodeResult)]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(episode, name) for name in names] for episode in episodes)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)


def read_episodes(path: Path) -> list[EpisodeResult]:
    """The episodes of a CSV file; columns that it lacks are ``None``."""
    return list(_read_episodes(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=1024)
def _read_episodes(path: Path, changed: int) -> tuple[EpisodeResult, ...]:
    """The same; a page reads a file several times."""

    def number(row: dict[str, str], name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    with path.open(newline="") as file:
        return tuple(
            EpisodeResult(
                task=row["task"],
                goal_index=int(row["goal_index"]),
                success=row["success"] == "True",
                success_at_end=row["success_at_end"] == "True",
                episode_return=float(row["episode_return"]),
                length=int(row["length"]),
                error=row["error"] or None,
                score=number(row, "score"),
                action_change=number(row, "action_change"),
            )
            for row in csv.DictReader(file)
        )


@dataclass(frozen=True)
class Store:
    """The folder ``benchmarks/results``, with a folder of stored files for some studies each."""

    root: Path

    def path(self, study: Study, variant: Variant, seed: int, arm: Arm) -> Path:
        """The file of an arm's episodes."""
        name = f"{variant.name}-seed{seed}-{arm.name}"
        if not study.measures_scores:  # locomotion has one group of tasks
            name += f"-{arm.group}"
        return self.root / study.folder / f"{name}.csv"

    def training_path(self, study: Study, variant: Variant, seed: int) -> Path:
        """The file about a training."""
        return self.root / study.folder / f"{variant.name}-seed{seed}-training.json"

    def training(self, study: Study, variant: Variant, seed: int) -> dict[str, Any]:
        """What is known of a training; empty if there is no file."""
        path = self.training_path(study, variant, seed)
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self, study: Study, variant: Variant, seed: int, arm: Arm) -> list[EpisodeResult]:
        """The stored episodes of an arm, of as many goals a task as the study has."""
        path = self.path(study, variant, seed, arm)
        if not path.exists():
            return []
        return [e for e in read_episodes(path) if e.goal_index < study.episodes_of(arm)]

    def episodes(
        self, study: Study, variant: Variant, seed: int, arm: Arm
    ) -> list[EpisodeResult] | None:
        """The episodes of an arm if all are there: every task, each with all its goals."""
        rows = self.rows(study, variant, seed, arm)
        listed = self.training(study, variant, seed).get(f"{arm.group}_tasks")
        tasks = {row.task for row in rows} if listed is None else set(listed)
        if not rows or len(rows) != len(tasks) * study.episodes_of(arm):
            return None
        return rows

    def missing(self, study: Study, variant: Variant, seed: int) -> list[Arm]:
        """The arms of which episodes are missing."""
        return [arm for arm in variant.arms if self.episodes(study, variant, seed, arm) is None]
