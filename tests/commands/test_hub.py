"""Publishing runs and policies, against a Hub that only writes down what it was asked."""

import json
import shutil
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


def test_only_the_listed_files_are_pushed(run, hub, capsys):
    output = run.parent / "out"
    options = ("--output", output, "--public", "--message", "first")
    assert publish(run, "--repo", "me/mine", *options, "--dry-run") == 0
    (output / "secret.txt").write_text("")
    assert publish(run, "--repo", "me/mine", *options) == 0
    assert (output / "secret.txt").exists()
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


def test_a_card_that_was_edited_in_the_prepared_folder_stays(run, hub):
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    card = Path("hub/me/mine/README.md")
    card.write_text("edited")
    (run / "checkpoint" / "README.md").write_text("written by hand")
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    assert card.read_text() == "edited"
    card.unlink()
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    assert card.read_text() == "written by hand"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_folder_of_other_files_is_prepared(run, capsys):
    (run / "README.md").write_text("notes")
    other = run.parent / "other"
    LLMDPDPolicy.from_pretrained(run / "checkpoint").save_pretrained(other / "policy")
    (run.parent / "README.md").write_text("a project")
    before = contents(run.parent)
    for output, reason in (
        (run, "holds the policy to publish"),
        (run.parent, "holds the policy to publish"),
        (run / "checkpoint", "holds the policy to publish"),
        (other, "holds other files than those prepared for me/mine"),
        (other / "policy", "holds other files than those prepared for me/mine"),
    ):
        line = fails(capsys, "publish", run, "--repo", "me/mine", "--dry-run", "--output", output)
        assert f"--output {output} {reason}" in line
    assert contents(run.parent) == before
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    line = fails(
        capsys, "publish", run, "--repo", "me/other", "--dry-run", "--output", "hub/me/mine"
    )
    assert "other files than those prepared for me/other" in line


def test_a_file_of_before_is_neither_deleted_nor_published(run, capsys):
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    (run / "episodes.mp4").unlink()
    line = fails(capsys, "publish", run, "--repo", "me/mine", "--dry-run")
    assert "hub/me/mine/replay.mp4 is not what is published of" in line
    assert Path("hub/me/mine/replay.mp4").exists()


PRIVATE = {
    "command": ["python", "/home/me/x"],
    "policy": "/home/me/run",
    "note": "/home/me/notes",
    "demonstrations": ["demonstration of reach-v3: episode 0 in /home/me/data (--episode)"],
    "episodes": [{"task": "reach-v3", "error": "the simulator failed: OSError: /home/me/y"}],
}


def change_results(folder, **changes):
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**content, **changes}))


def test_nothing_published_names_local_folders(run, capsys):
    change_results(run, **PRIVATE, texts={"reach-v3": "Reach."})
    config = run / "checkpoint" / "config.json"
    content = json.loads(config.read_text())
    content["info"]["text_encoder"] = {"model": "/home/me/encoder", "layer": 3}
    config.write_text(json.dumps(content))
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    folder = Path("hub/me/mine")
    for name in ("results.json", "config.json", "README.md"):
        assert "/home/me" not in (folder / name).read_text()
    info = LLMDPDPolicy.from_pretrained(folder).info
    assert info["text_encoder"] == {"model": "encoder", "layer": 3}
    results = json.loads((folder / "results.json").read_text())
    assert results["texts"] == {"reach-v3": "Reach."}
    assert results["episodes"][0]["error"] == "the simulator failed"
    assert publish(folder, "--repo", "me/mine", "--dry-run") == 0  # as it is
    line = fails(
        capsys, "publish", config.parent, "--repo", "me/a", "--dry-run", "--output", config.parent
    )
    assert "names a local folder as its text encoder" in line


def test_a_policy_published_in_place_is_checked_alike(run, hub, capsys, monkeypatch):
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    folder = Path("hub/me/mine")
    change_results(folder, **PRIVATE)
    line = fails(capsys, "publish", folder, "--repo", "me/mine")
    assert "results.json is not what is published" in line
    assert publish(folder, "--repo", "me/other", "--dry-run") == 0
    assert "/home/me" not in Path("hub/me/other/results.json").read_text()
    (folder / "results.json").unlink()
    monkeypatch.setattr("llmdpd_torchrl.commands.hub.LARGEST", 2)
    line = fails(capsys, "publish", folder, "--repo", "me/mine")
    assert "success.png is not what is published" in line
    (folder / "success.png").unlink()
    (folder / "success.png").symlink_to("/etc/hostname")
    line = fails(capsys, "publish", folder, "--repo", "me/mine")
    assert "success.png: a symbolic link" in line
    for name in ("success.png", "replay.mp4", "README.md"):
        (folder / name).unlink()
    (folder / "README.md").symlink_to("/etc/hostname")
    line = fails(capsys, "publish", folder, "--repo", "me/mine")
    assert "README.md: a symbolic link" in line
    assert not hub


def test_results_on_chosen_prompts_are_named(run):
    change_results(run, texts={}, demonstrations=["demonstration of reach-v3: ..."])
    assert publish(run, "--repo", "me/mine", "--dry-run") == 0
    result = ModelCard.load("hub/me/mine/README.md").data.eval_results[0]
    assert result.dataset_name.endswith(
        ": 1 unseen task, by llmdpd eval on chosen tasks and prompts"
    )


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


def test_a_failed_download_leaves_no_folder(run, capsys, monkeypatch):
    def snapshot_download(repository, local_dir, **options):
        shutil.copytree(run / "checkpoint", local_dir)
        (local_dir / "model.safetensors").write_bytes(b"")
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    line = fails(capsys, "download", "me/mine", "--output", "new")
    assert "model.safetensors: damaged" in line
    assert not Path("new").exists()


def test_a_policy_with_an_actor_of_its_own_is_downloaded(run, capsys, monkeypatch):
    policy = LLMDPDPolicy.from_pretrained(run / "checkpoint")
    policy.actor.module.action_bounds = (-0.1, 0.1)
    policy.save_pretrained(run / "own")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(run / "own"))
    assert main(["hub", "download", "me/mine"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "own")
