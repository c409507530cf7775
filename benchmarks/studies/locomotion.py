"""What the benchmarks on recorded locomotion have in common: arms, kept episodes, figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.episodes import read_episodes, write_episodes
from benchmarks.studies.playing import play, read_settings
from llmdpd_torchrl.evaluation.comparison import normalized_scores
from llmdpd_torchrl.evaluation.statistics import Estimate, student_interval
from llmdpd_torchrl.experiments.context import Run
from llmdpd_torchrl.experiments.locomotion import Locomotion
from llmdpd_torchrl.experiments.run import prepare, run_stage
from llmdpd_torchrl.utils.files import write_json

ROOT = Path(__file__).parents[2]
#: By what the policy is: what it is shown in an evaluation, and what the arm is called.
ARMS: Mapping[str, Mapping[str, str]] = {
    "ours": {
        "none": "none",
        "text": "text",
        "trajectory": "trajectory",
        "both": "both",
        "wrong": "wrong_prompt",
    },
    "oracle": {"both": "oracle"},
    "unprompted": {"none": "unprompted"},
}
#: The arms of a table, in its order.
COLUMNS = ("none", "wrong_prompt", "text", "trajectory", "both", "oracle")
#: Of a policy that is told the number in place of a text.
ORACLE = ("text_encoder=oracle", "prompt=text", "network.text_dropout=0.0")


@dataclass(frozen=True)
class Training:
    """One policy: what of, how, and with which seed."""

    label: str
    policy: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder in ``outputs/`` and of its files among the results."""
        return f"{self.label}-{self.policy}-seed{self.seed}"

    def path(self, keep: Path, control: str) -> Path:
        """Where an arm's episodes are kept."""
        return keep / f"{self.name}-{ARMS[self.policy][control]}.csv"

    def run(self, keep: Path, episodes: int) -> None:
        """Train and evaluate what is not kept yet."""
        missing = [c for c in ARMS[self.policy] if not self.path(keep, c).exists()]
        if not missing:
            print(f"{self.name}: kept")
            return
        run = self._trained(episodes)
        training = keep / f"{self.name}-training.json"
        about = {"fingerprint": run.fingerprint, "data_hash": run.dataset.manifest.data_hash}
        if run.trained or not training.exists():
            keep.mkdir(parents=True, exist_ok=True)
            about["updates"] = run.policy.info["updates"]
            write_json(training, about | {"train_seconds": run.seconds.get("train")})
        for control in missing:
            run.cfg.evaluation.control = control
            # Of levels, the one that is held out has no other to be shown.
            among = run.split.held_out if len(run.split.held_out) > 1 else None
            tasks = run.split.held_out or run.split.train
            results = play(run, tasks, among, f"{self.name}, {control}")
            write_episodes(self.path(keep, control), results)

    def _trained(self, episodes: int) -> Run:
        overrides = [
            f"name={self.name}",
            f"output_dir={ROOT / 'outputs' / self.name}",
            f"seed={self.seed}",
            f"evaluation.episodes_per_task={episodes}",
            *self.overrides,
            *(ORACLE if self.policy == "oracle" else ()),
        ]
        run = prepare(read_settings("configs/d4rl", "train_d4rl", overrides), Locomotion())
        print(self.name, flush=True)
        for stage in ("collect", "embed", "train"):
            run_stage(run, stage)
        return run


def arm_estimates(keep: Path, label: str, seeds: Sequence[int]) -> dict[str, Estimate]:
    """The score of each arm: mean over tasks and episodes, with an interval over the seeds."""
    found = {}
    for policy, controls in ARMS.items():
        for control, arm in controls.items():
            paths = [Training(label, policy, seed, ()).path(keep, control) for seed in seeds]
            there = [path for path in paths if path.exists()]
            if there:
                found[arm] = student_interval([_mean(path) for path in there])
    return found


def task_estimates(keep: Path, label: str, seeds: Sequence[int]) -> dict[str, dict[str, Estimate]]:
    """The same by task, then by arm."""
    found: dict[str, dict[str, Estimate]] = {}
    for policy, controls in ARMS.items():
        for control, arm in controls.items():
            paths = [Training(label, policy, seed, ()).path(keep, control) for seed in seeds]
            runs = [read_episodes(path) for path in paths if path.exists()]
            for task, rows in (normalized_scores(runs) if runs else {}).items():
                found.setdefault(task, {})[arm] = student_interval(rows.mean(-1).tolist())
    return found


def _mean(path: Path) -> float:
    """Every task weighing the same."""
    means = [float(rows.mean()) for rows in normalized_scores([read_episodes(path)]).values()]
    return sum(means) / len(means)


def as_figures(estimates: Mapping[str, Estimate], prefix: str = "") -> dict[str, float]:
    """Values and interval ends; limits that are not known are left out."""
    figures = {}
    for arm, estimate in estimates.items():
        figures[f"{prefix}{arm}"] = estimate.value
        if not math.isnan(estimate.low):
            figures[f"{prefix}{arm}_low"] = estimate.low
            figures[f"{prefix}{arm}_high"] = estimate.high
    return figures


def budget(keep: Path, labels: Iterable[str]) -> dict[str, float]:
    """Of all kept policies together: how many, and the least updates, and episodes of an arm."""
    trainings = [p for label in labels for p in keep.glob(f"{label}-*-training.json")]
    arms = [p for label in labels for p in keep.glob(f"{label}-*.csv")]
    return {
        "policies": len(trainings),
        "updates": min(json.loads(path.read_text())["updates"] for path in trainings),
        "episodes_per_task": min(
            rows.shape[-1] for path in arms
            for rows in normalized_scores([read_episodes(path)]).values()
        ),
    }  # fmt: skip


def train_minutes(keep: Path, names: Iterable[str]) -> float:
    """The mean time of some trainings."""
    seconds = [
        json.loads((keep / f"{name}-training.json").read_text())["train_seconds"] for name in names
    ]
    return sum(seconds) / len(seconds) / 60
