"""Publishing runs and policies, against a Hub that only writes down what it was asked."""

import json
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from llmdpd_torchrl.__main__ import main
from llmdpd_torchrl.evaluation.results import write_results_json
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, summarise
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy

ABOUT = {"fingerprint": "abc", "updates": 7}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a finished run, the working directory being beside it."""
    config = NetworkConfig(prompt="text", text_dim=6, hidden=[8])
    info = {**ABOUT, "benchmark": "Meta-World, split quick"}
    policy = LLMDPDPolicy.from_networks(config, make_networks(config), info)
    folder = tmp_path / "run"
    policy.save_pretrained(folder / "checkpoint")
    tasks = ("reach-v3", "reach-v3", "door-lock-v3", "door-lock-v3")
    episodes = [EpisodeResult(task, 0, i > 0, True, 1.0, 9) for i, task in enumerate(tasks)]
    summary = summarise(episodes, ["reach-v3"], ["door-lock-v3"])
    extra = {**ABOUT, "control": "both", "command": ["python", "/home/me/x"], "episodes": []}
    write_results_json(folder / "results.json", summary, extra)
    (folder / "success.png").write_bytes(b"png")
    (folder / "episodes.mp4").write_bytes(b"mp4")
    (folder / "metrics.csv").write_text("step\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def hub(monkeypatch):
    calls = {}

    class Api:
        def create_repo(self, repository, **options):
            calls["create"] = (repository, options)

        def upload_folder(self, **options):
            calls["upload"] = options
            return types.SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    return calls


def publish(*arguments):
    return main(["hub", "publish", *map(str, arguments)])


def fails(capsys, *arguments):
    """The one line of a command that fails."""
    assert main(["hub", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_dry_run_prepares_what_would_be_pushed(run, hub, capsys):
    assert publish(run, "--repo", "me/mine", "--dry-run", "--license", "apache-2.0") == 0
    assert not hub
    folder = Path("hub/me/mine")
    files = {path.name for path in folder.iterdir()}
    policy_files = {"config.json", "model.safetensors", "README.md"}
    assert files == policy_files | {"results.json", "success.png", "replay.mp4"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in files)
    LLMDPDPolicy.from_pretrained(folder)
    before, after = (load_file(f / "model.safetensors") for f in (run / "checkpoint", folder))
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert [(r.dataset_split, r.metric_value) for r in card.data.eval_results] == [
        ("unseen", 100.0),
        ("seen", 50.0),
    ]
    assert "replay.mp4" in card.text
    assert "/home/me" not in (folder / "results.json").read_text()


def test_only_the_listed_files_are_pushed(run, hub, capsys):
    output = run.parent / "out"
    output.mkdir()
    (output / "secret.txt").write_text("")
    options = ("--output", output, "--public", "--message", "first")
    assert publish(run, "--repo", "me/mine", *options) == 0
    assert "https://hub/commit" in capsys.readouterr().out
    assert hub["create"] == ("me/mine", {"private": False, "exist_ok": True})
    assert hub["upload"]["commit_message"] == "first"
    assert "secret.txt" not in hub["upload"]["allow_patterns"]
    assert "results.json" in hub["upload"]["allow_patterns"]


def test_a_policy_alone_is_published_without_results(run, hub):
    assert publish(run / "checkpoint", "--repo", "me/mine") == 0
    assert hub["create"][1]["private"] is True
    assert ModelCard.load("hub/me/mine/README.md").data.eval_results is None
    assert not Path("hub/me/mine/results.json").exists()


def test_a_card_written_by_hand_is_published_as_it_is(run, hub):
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    folder = Path("hub/me/mine")
    (folder / "README.md").write_text("mine")
    assert publish(folder, "--repo", "me/mine") == 0
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "replay.mp4").exists()
    assert publish(folder, "--repo", "me/other", "--dry-run") == 0
    assert Path("hub/me/other/README.md").read_text() == "mine"


def test_results_of_another_training_are_refused(run, capsys):
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**content, "updates": 8}))
    line = fails(capsys, "publish", run, "--repo", "me/mine")
    assert "results.json: the results are another training's (updates is 8" in line
    assert not Path("hub").exists()


def test_unusual_prompts_of_the_evaluation_are_named(run):
    content = json.loads((run / "results.json").read_text())
    unusual = {"control": "wrong", "demonstrations": 2, "demonstration_fraction": 0.5}
    (run / "results.json").write_text(json.dumps(content | unusual))
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    result = ModelCard.load("hub/me/mine/README.md").data.eval_results[0]
    assert result.dataset_name == (
        "Meta-World, split quick: 1 unseen task, prompted with wrong, 2 demonstrations, "
        "first 50 % of the demonstration"
    )


def test_what_cannot_be_published_is_one_line(run, capsys):
    line = fails(capsys, "publish", "nowhere", "--repo", "me/mine", "--dry-run")
    assert "no policy in nowhere: give the folder of a run" in line
    line = fails(capsys, "publish", run, "--repo", "mine", "--dry-run")
    assert "give owner/name" in line
    (run / "checkpoint" / "x.pkl").write_bytes(b"")
    line = fails(capsys, "publish", run, "--repo", "me/mine", "--dry-run")
    assert "x.pkl: a file of this kind does not belong here" in line
    (run / "checkpoint" / "x.pkl").unlink()
    weights = run / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    line = fails(capsys, "publish", run, "--repo", "me/mine", "--dry-run")
    assert "model.safetensors: damaged" in line


def test_links_and_large_files_stay_here(run, capsys, monkeypatch):
    monkeypatch.setattr("llmdpd_torchrl.commands.hub.LARGEST", 2000)
    (run / "episodes.mp4").write_bytes(b"0" * 3000)
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    assert "episodes.mp4 has more than" in capsys.readouterr().out
    assert not Path("hub/me/mine/replay.mp4").exists()
    (run / "success.png").unlink()
    (run / "success.png").symlink_to("/etc/hostname")
    line = fails(capsys, "publish", run, "--repo", "me/mine", "--dry-run")
    assert "success.png: a symbolic link" in line


def test_a_download_is_checked_and_its_folder_named(run, capsys, monkeypatch):
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(run / "checkpoint")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert main(["hub", "download", "me/mine", "--revision", "v1"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "checkpoint")
    assert (asked["repository"], asked["revision"], asked["local_dir"]) == ("me/mine", "v1", None)
    line = fails(capsys, "download", "me/mine", "--output", run)
    assert "exists: choose a new folder" in line
