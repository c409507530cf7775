"""Saved policies as runs leave them, and evaluations in one worker."""

import pytest
import torch

from llmdpd_torchrl.evaluation import evaluator
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy

REACH = 40


@pytest.fixture
def make_policy(tmp_path):
    """Save a policy in the folder of a run, whose path is returned."""

    def make(prompt, info=None, name="run-seed3", **changes):
        torch.manual_seed(0)
        sizes = {"hidden": [16], "trajectory_length": 16, "trained_task_ids": [REACH]}
        config = NetworkConfig(prompt=prompt, **sizes | changes)
        about = {
            "text_encoder": "smollm2",
            "trained_tasks": ["reach-v3"],
            "held_out_tasks": ["window-open-v3"],
            "seed": 3,
            **(info or {}),
        }
        networks = make_networks(config)
        folder = tmp_path / "runs" / name
        LLMDPDPolicy.from_networks(config, networks, about).save_pretrained(folder / "checkpoint")
        return str(folder)

    return make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that the command is run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def one_worker(backend, monkeypatch):
    """The session's worker in the place of the command's own."""
    monkeypatch.setattr(evaluator, "LocalBackend", lambda workers: backend)
