"""Finished runs as a training leaves them."""

import dataclasses

import pytest
import torch

from llmdpd_torchrl.evaluation.results import write_results_json
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, summarise
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers.metrics_file import MetricsFile
from llmdpd_torchrl.utils.files import write_json

SEEN, UNSEEN = ["reach-v3", "push-v3"], ["door-lock-v3"]


@pytest.fixture
def make_run(tmp_path):
    """Write a run's results; what succeeds is a function of task and goal."""

    def make(name, seed=0, succeeds=lambda task, goal: goal % 2 == 0, error=None, **about):
        folder = tmp_path / "outputs" / f"{name}-seed{seed}"
        folder.mkdir(parents=True)
        episodes = [
            EpisodeResult(
                task, goal, bool(succeeds(task, goal)), False, 10.0, 100,
                error=error if (task, goal) == ("push-v3", 3) else None,
            )
            for task in SEEN + UNSEEN
            for goal in range(4)
        ]  # fmt: skip
        summary = summarise(episodes, SEEN, UNSEEN)
        about = {"name": folder.name, "seed": seed, "control": "both", **about}
        about["episodes"] = [dataclasses.asdict(episode) for episode in episodes]
        write_results_json(folder / "results.json", summary, about)
        return folder

    return make


@pytest.fixture
def fill_run():
    """Put beside the results whatever else a report shows."""

    def fill(folder):
        metrics = MetricsFile(folder / "metrics.csv")
        for step in range(1, 60):
            metrics.write(step * 100, {"train/bc": 1 / step, "eval/success_unseen": 0.5})
        rates = {a: {b: float(a == b) for b in UNSEEN + SEEN} for a in UNSEEN + SEEN}
        write_json(folder / "confusion.json", {"rates": rates, "episodes": 4})
        torch.manual_seed(0)
        config = NetworkConfig(hidden=[8], trajectory_length=16, trained_task_ids=[40])
        info = {"text_encoder": "smollm2"}
        LLMDPDPolicy.from_networks(config, make_networks(config), info).save_pretrained(
            folder / "checkpoint"
        )

    return fill
