"""Recorded locomotion as a person trains on it: with no file, with a file, with several."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmdpd_torchrl.data import OfflineDataset, Recording, export_d4rl
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError

SCRIPT = "train_d4rl.py"
NO_VIDEO = ("video.tasks=[]", "progress=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_example):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_example(SCRIPT, folder, "preset=smoke")


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """Three small files of one environment."""
    folder = tmp_path_factory.mktemp("hopper")
    generator = np.random.default_rng(0)
    for level in ("medium_replay", "medium", "expert"):
        rows = 60
        observation = generator.normal(size=(rows + 1, 11))
        recording = Recording(
            name=level, source=level, observation=observation[:-1],
            next_observation=observation[1:], action=generator.uniform(-1, 1, (rows, 3)),
            reward=np.ones(rows), terminated=np.zeros(rows), truncated=np.arange(rows) % 15 == 14,
        )  # fmt: skip
        export_d4rl(OfflineDataset.from_recordings([recording]), folder / f"hopper_{level}.hdf5")
    return folder


def test_with_no_file_one_is_generated_in_the_cache_and_said_so(finished, cache_folder):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    assert "generating a small data set" in process.stdout
    assert "collect gait" in process.stderr  # the bar
    path = cache_folder / "data" / "halfcheetah" / "halfcheetah_gait_2_episodes.hdf5"
    assert path.exists()
    assert f"data: {path}" in process.stdout
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["outputs"]


def test_all_artefacts_are_there(finished):
    folder, process = finished
    output = folder / "outputs" / "speeds-smoke-both-seed0"
    found = {path.name for path in output.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "results.json", "results.md",
            "success.png", "learning_curves.png", "checkpoint", "report"} <= found  # fmt: skip
    assert "episodes.mp4" in found or "video: no pictures" in process.stdout
    results = json.loads((output / "results.json").read_text())
    assert len(results["episodes"]) == 2 * 12
    assert all(episode["score"] is not None for episode in results["episodes"])
    assert results["summary"]["unseen"]["score"] == pytest.approx(
        np.mean([t["score"] for t in results["summary"]["tasks"] if not t["seen"]])
    )
    for text in ("score", "halfcheetah-vel-1.5", "mean of 3 tasks"):
        assert text in process.stdout
    with open(output / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["20", "40", "60"]
    assert "halfcheetah-vel-1.5 (unseen)" in (output / "report" / "report.html").read_text()


def test_the_checkpoint_acts_on_a_new_speed_in_words(finished):
    import torch
    from tensordict import TensorDict

    from llmdpd_torchrl.prompts import velocity_prompt

    folder, _ = finished
    policy = LLMDPDPolicy.from_pretrained(
        folder / "outputs" / "speeds-smoke-both-seed0" / "checkpoint"
    )
    prompted = policy.prompt(text=velocity_prompt(1.25).render())
    action = prompted(TensorDict({"observation": torch.zeros(2, 17)}, [2]))["action"]
    assert action.shape == (2, 6)


def test_a_second_run_reuses_every_stage(finished, run_example):
    folder, _ = finished
    process = run_example(SCRIPT, folder, "preset=smoke", *NO_VIDEO)
    assert process.returncode == 0, process.stderr
    assert "train: reusing" in process.stdout
    assert "evaluate: reusing" in process.stdout
    assert "generating" not in process.stdout


def test_results_of_other_physics_or_lengths_are_not_reused(finished, monkeypatch, run_example):
    folder, _ = finished

    def evaluate_again(*arguments, **settings):
        raise ConfigError("it evaluates again")

    monkeypatch.setattr("llmdpd_torchrl.experiments.evaluate.make_evaluator", evaluate_again)
    name = "name=speeds-smoke-both-seed0"  # without a name, each has a folder of its own
    for changes in (["evaluation.dynamics.gravity=0.5"], ["evaluation.max_steps=4"]):
        process = run_example(SCRIPT, folder, "preset=smoke", name, *NO_VIDEO, *changes)
        assert process.returncode == 2
        assert "train: reusing" in process.stdout
        assert "evaluate: reusing" not in process.stdout
        assert "it evaluates again" in process.stderr
    process = run_example(SCRIPT, folder, "preset=smoke", name, *NO_VIDEO)
    assert "evaluate: reusing" in process.stdout, process.stderr


@pytest.mark.integration
def test_an_oracle_gets_the_speed_as_a_number(finished, run_example):
    folder, _ = finished
    process = run_example(
        SCRIPT, folder, "preset=smoke", "name=oracle", "+experiment=oracle",
        "data.validation=true", *NO_VIDEO,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    policy = LLMDPDPolicy.from_pretrained(folder / "outputs" / "oracle" / "checkpoint")
    assert policy.config.text_dim == 1
    assert "halfcheetah-vel-0.75" not in policy.info["trained_tasks"]  # held out by the file
    assert "halfcheetah-vel-1" not in policy.info["trained_tasks"]  # and for validation
    results = json.loads((folder / "outputs" / "oracle" / "results.json").read_text())
    assert "halfcheetah-vel-0.75" not in results["starts"] or not any(
        episode["task"] == "halfcheetah-vel-0.75" for episode in results["episodes"]
    )


@pytest.mark.parametrize("conditioning", ["pooled", "retrieved"])
def test_levels_are_reached_by_their_prompts(hopper, tmp_path, run_example, conditioning):
    sources = ",".join(
        str(hopper / f"hopper_{level}.hdf5") for level in ("medium_replay", "medium")
    )
    process = run_example(
        SCRIPT, tmp_path, "preset=smoke", "dataset=hopper_levels", f"data.sources=[{sources}]",
        f"data.held_out=[{hopper / 'hopper_expert.hdf5'}]", "evaluation.dynamics.gravity=0.9",
        f"network.conditioning={conditioning}", "evaluation.control=wrong", *NO_VIDEO,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (output,) = (tmp_path / "outputs").glob("hopper_levels-smoke-both-*-seed0")
    results = json.loads((output / "results.json").read_text())
    assert results["split"]["held_out"] == ["hopper_expert"]
    assert results["starts"]["hopper_expert"]["dynamics"]["gravity"] == 0.9


@pytest.mark.integration
def test_one_file_without_prompts(hopper, tmp_path, run_example):
    process = run_example(
        SCRIPT, tmp_path, "preset=smoke", "dataset=hopper_medium", "prompt=none",
        f"data.sources=[{hopper / 'hopper_medium.hdf5'}]", *NO_VIDEO,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "hopper_medium" in process.stdout
    assert "unseen" not in process.stdout


@pytest.mark.integration
def test_what_the_critics_add_is_in_a_table(hopper, tmp_path, run_example):
    settings = (
        "preset=smoke", "algorithm=diffusion_ql", "loss.lmbda=0", "loss.bounded=true",
        "network.candidates=4", "network.critic_bins=11", "evaluation.max_steps=5",
        "evaluation.compare=[sampled]", "name=run", f"data.sources=[{hopper}/hopper_medium.hdf5]",
    )  # fmt: skip
    process = run_example(SCRIPT, tmp_path, *settings, *NO_VIDEO)
    assert process.returncode == 0, process.stderr
    assert "own minus it" in process.stdout
    found = json.loads((tmp_path / "outputs" / "run" / "acting.json").read_text())
    ((way, group, *_),) = found["rows"]
    assert (way, group) == ("sampled", "seen")
    policy = LLMDPDPolicy.from_pretrained(tmp_path / "outputs" / "run" / "checkpoint")
    assert policy.config.candidates == 4


def test_help_and_every_dataset_and_preset_read_well(run_example, tmp_path):
    text = run_example(SCRIPT, tmp_path, "--help").stdout
    assert text.startswith("Train LLM-Driven Policy Diffusion on recorded locomotion")
    for word in ("hopper_medium", "paper", "data.sources", "trainer:"):
        assert word in text
    text = run_example(
        SCRIPT, tmp_path, "dataset=walker2d_medium_expert", "+experiment=d4rl_paper", "--cfg", "job"
    ).stdout
    assert "walker2d-medium-expert-v2" in text
    assert "max_grad_norm: 5.0" in text
    assert "total_updates: 2000000" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources=[no/such/hopper.hdf5]"], "there is no such file"),
        (["data.sources=hopper.hdf5"], "data.sources is 'hopper.hdf5': it must be a list"),
        (["data.sources=[mine.hdf5]"], "data.environment is None, and 'mine' is not named"),
        (["data.sources=[hopper-mediun-v2]"], "D4RL has no dataset 'hopper-mediun-v2'"),
        (["data.held_out=[hopper.hdf5]"], "data.held_out is given without data.sources"),
        (["data.environment=Ant-v4", "data.sources=[a.hdf5]"], "data.environment is 'Ant-v4'"),
        (["data.folder=/dev/null/x"], "cannot create the data folder"),
        (["data.gait_episodes=0"], "data.gait_episodes is 0"),
        (["trajectory_prompt.top_fraction=0"], "trajectory_prompt.top_fraction is 0"),
        (["evaluation.dynamics.mass=0"], "dynamics.mass is 0"),
        (["evaluation.max_steps=none"], "evaluation.max_steps is 'none'"),
        (["evaluation.control=half"], "evaluation.control is 'half'"),
        (["text_encoder.model=no such model"], "unknown text encoder 'no such model'"),
        (["+network.typo=1"], "network.typo: there is no such setting"),
        (["until=dance"], "until is 'dance'"),
    ],
)
def test_mistakes_end_in_one_clear_line(check_mistake, overrides, message):
    check_mistake("train_d4rl.py", overrides, message)


@pytest.mark.integration
def test_a_mistake_ends_the_command(run_command_of_example, tmp_path):
    process = run_command_of_example(
        SCRIPT, tmp_path, "preset=smoke", "data.sources=[no/such/hopper.hdf5]"
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: no/such/hopper.hdf5")
    assert process.stderr.count("\n") == 1


@pytest.mark.integration
def test_an_interrupted_training_ends_where_one_that_was_not_does(tmp_path, run_example):
    shared = ("preset=smoke", "until=train", "trainer.total_updates=400", "trainer.save_every=40",
              "progress=false", "data.folder=data")  # fmt: skip
    whole = run_example(SCRIPT, tmp_path, *shared, "name=whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / SCRIPT)]
    process = subprocess.Popen(
        [*command, *shared, "name=cut"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    output = tmp_path / "outputs" / "cut"
    while process.poll() is None and not list(output.glob("training/*/*/checksums.sha256")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "SIGTERM: stopped after" in errors
    assert not (output / "checkpoint").exists()
    again = run_example(SCRIPT, tmp_path, *shared, "name=cut")
    assert again.returncode == 0, again.stderr
    assert "train: resuming at update" in again.stdout
    assert not (output / "training").exists()
    for file in ("checkpoint/model.safetensors", "metrics.csv"):
        assert (output / file).read_bytes() == (tmp_path / "outputs" / "whole" / file).read_bytes()
