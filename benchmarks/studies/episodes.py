"""Evaluated episodes as they are kept beside the figures: a CSV file an arm, a row an episode."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.utils.files import write_atomic


def write_episodes(path: Path, episodes: Sequence[EpisodeResult]) -> None:
    """Write all that an episode says."""
    names = [field.name for field in fields(EpisodeResult)]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(episode, name) for name in names] for episode in episodes)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write)


def read_episodes(path: Path) -> list[EpisodeResult]:
    """Read them again."""

    def number(row: dict[str, str], name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    with path.open(newline="") as file:
        return [
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
        ]
