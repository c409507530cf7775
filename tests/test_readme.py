"""What the README says runs."""

import re
from pathlib import Path

import torch
from tensordict import TensorDict

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import export_d4rl
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import load_text_prompts, text_embedding_table
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_composed_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = CollectionSettings(episodes_per_task=2, max_steps=20)
    collect_metaworld("my_data", ["reach-v3", "push-v3"], settings, workers=1)
    names = {}
    exec(BLOCKS[0].replace("total_updates=1000", "total_updates=2"), names)
    export_d4rl(names["data"], "episodes.hdf5")  # instead of a download
    exec(BLOCKS[1].replace("hopper-medium-v2", "episodes.hdf5"), names)
    observation = TensorDict({"observation": torch.randn(3, 11)}, [3])
    assert names["ranked"](observation)["action"].shape == (3, 3)
    assert len(names["hopper"]) == len(names["data"].transitions)


def test_the_prompted_example_runs(dataset, tmp_path):
    config = NetworkConfig(hidden=[8], trajectory_length=16)
    info = {"text_encoder": "smollm2"}
    policy = LLMDPDPolicy.from_networks(config, make_networks(config), info)
    policy.save_pretrained(tmp_path)
    (block,) = [block for block in BLOCKS if "policy.prompt(" in block]
    text = load_text_prompts()["door-lock-v3"].render()  # comes with the package: no model needed
    block = block.replace("outputs/quick-both-seed0/checkpoint", str(tmp_path))
    block = block.replace('"Task: Lock the door."', repr(text)).replace("rollout(500", "rollout(3")
    exec(block.replace("...", "given", 1), {"given": dataset.trajectory(0)})


def test_the_evaluation_runs(dataset):
    config = NetworkConfig(hidden=[8], trajectory_length=16)
    names = {
        "policy": LLMDPDPolicy.from_networks(config, make_networks(config)),
        "table": text_embedding_table(METAWORLD_TASKS.names),
        "bank": TrajectoryPromptBank.from_dataset(dataset, 16),
    }
    (block,) = [block for block in BLOCKS if "Evaluator(" in block]
    block = block.replace("episodes_per_task=50", "episodes_per_task=1, max_steps=3")
    exec(block.replace("door-lock-v3", "reach-v3"), names)
    assert [episode.length for episode in names["episodes"]] == [3]


def test_the_paths_that_it_names_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(
        r"(?:docs|benchmarks/results|configs|llmdpd_torchrl)/[\w./-]*\w", README
    ):
        assert (root / path).exists(), path


def test_ci_runs_the_readmes_test_command():
    ci = (Path(__file__).parents[1] / ".ci/run").read_text()
    (pattern,) = re.findall(r"sed -n 's/(.*?)/\\1/p' README.md", ci)
    assert re.search(pattern.replace("\\(", "(").replace("\\)", ")"), README, re.M)
    assert re.search(r"^pip install -c constraints.txt .* && pytest -n 2$", README, re.M)
