"""Runs of the algorithms that read sequences, from configuration to results."""

import json

import pytest

from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import run_experiment
from llmdpd_torchrl.policies import LLMDPDPolicy


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def run(folder, data, *overrides):
    settings = [
        "preset=smoke", f"output_dir={folder}", f"data.folder={data}", "progress=false",
        "video.tasks=[]", "evaluation.backend=local", "evaluation.workers=1",
        "evaluation.max_steps=12", *overrides,
    ]  # fmt: skip
    return run_experiment(compose_settings("train_metaworld", settings), MetaWorld())


@pytest.mark.integration
@pytest.mark.parametrize("name", [pytest.param("prompt_dt", marks=pytest.mark.slow), "mtdiff"])
def test_from_configuration_to_results(name, tmp_path, data, capsys):
    small = ["network.sequence.width=16", "network.sequence.layers=1", f"algorithm={name}"]
    small += ["evaluation.every=20", "evaluation.every_episodes=1"]
    assert 0 <= run(tmp_path, data, *small) <= 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["episodes"]) == 6
    assert not any(episode["error"] for episode in results["episodes"])
    policy = LLMDPDPolicy.from_pretrained(tmp_path / "checkpoint")
    assert policy.info["algorithm"] == name
    assert policy.config.sequence.width == 16
    assert 0 <= run(tmp_path, data, *small) <= 1
    assert "train: reusing" in capsys.readouterr().out
