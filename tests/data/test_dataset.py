import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import Manifest, TrajectoryDataset
from llmdpd_torchrl.data.manifest import task_record
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import file_sha256

SETTINGS = CollectionSettings(episodes_per_task=2, max_steps=30)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    collect_metaworld(folder, ["reach-v3", "push-v3"], SETTINGS, workers=1, progress=False)
    return folder


@pytest.fixture
def folder(collected, tmp_path):
    """A copy of the collected data, which the test may change."""
    return Path(shutil.copytree(collected, tmp_path, dirs_exist_ok=True))


def rewrite(folder, change):
    """Change the arrays of a task file and sign the manifest anew, as a faulty writer would."""
    path = folder / "reach-v3.safetensors"
    arrays = load_file(path)
    change(arrays)
    episodes = Manifest.read(folder).tasks["reach-v3"].episodes
    header = json.dumps({"settings": SETTINGS.to_dict(), "episodes": episodes})
    save_file(arrays, path, {"collection": header})
    manifest = Manifest.read(folder)
    manifest.tasks["reach-v3"] = task_record(path, SETTINGS.to_dict())
    manifest.write(folder)


def test_what_is_loaded_is_what_was_collected(folder):
    data = TrajectoryDataset.load(folder)
    assert data.tasks == ("push-v3", "reach-v3")
    assert data.lengths.tolist() == [30] * 4
    assert data.transitions["trajectory_id"].squeeze(-1).unique().tolist() == [0, 1, 2, 3]
    arrays = load_file(folder / "push-v3.safetensors")
    assert torch.equal(data.transitions["action"][:60], torch.from_numpy(arrays["action"]))
    assert data.transitions["observation"].abs().sum() > 0
    trajectory = data.trajectory(2)
    assert trajectory["step_count"].squeeze(-1).tolist() == list(range(30))
    # A truncated step keeps its real successor and is not terminated: it bootstraps.
    assert trajectory["next", "truncated"][-1].item()
    assert not trajectory["next", "terminated"].any()
    assert trajectory["next", "observation"][-1].abs().sum() > 0


def test_a_part_can_be_loaded(folder):
    data = TrajectoryDataset.load(folder, ["reach-v3"])
    assert data.tasks == ("reach-v3",)
    assert data.transitions["trajectory_id"].min() == 0


def test_the_goal_can_be_hidden(folder):
    shown, hidden = (TrajectoryDataset.load(folder, hide_goal=h).transitions for h in (False, True))
    assert shown["observation"][:, 36:39].abs().sum() > 0
    for key in ("observation", ("next", "observation")):
        assert hidden[key][:, 36:39].abs().sum() == 0
        assert torch.equal(hidden[key][:, :36], shown[key][:, :36])


def test_the_replay_buffer_samples_stored_rows_and_repeats(folder):
    data = TrajectoryDataset.load(folder)
    first = data.replay_buffer(16, seed=1).sample()
    second = data.replay_buffer(16, seed=1).sample()
    assert torch.equal(first["index"], second["index"])
    index = torch.as_tensor(first["index"])
    assert torch.equal(first["next", "reward"], data.transitions["next", "reward"][index])
    assert len(data.replay_buffer(16)) == len(data.transitions)


def test_a_missing_dataset(tmp_path):
    with pytest.raises(DataError, match=r"no dataset in .*manifest.json is missing"):
        TrajectoryDataset.load(tmp_path)


def test_a_missing_task(folder):
    with pytest.raises(DataError, match="'sweep-v3' is not in this dataset"):
        TrajectoryDataset.load(folder, ["sweep-v3"])


def test_a_missing_file(folder):
    (folder / "reach-v3.safetensors").unlink()
    with pytest.raises(DataError, match=r"reach-v3\.safetensors: missing"):
        TrajectoryDataset.load(folder)


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_file(folder, cut):
    path = folder / "reach-v3.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    for verify in (True, False):
        with pytest.raises(DataError, match=r"reach-v3\.safetensors: "):
            TrajectoryDataset.load(folder, verify=verify)


def test_an_observation_of_the_wrong_size(folder):
    rewrite(folder, lambda a: a.update(observation=a["observation"][:, :38].copy()))
    with pytest.raises(DataError, match=r"observation has shape \(60, 38\), the manifest says \(60, 39\)"):  # fmt: skip  # noqa: E501
        TrajectoryDataset.load(folder)


@pytest.mark.parametrize(
    ("key", "spoil", "message"),
    [
        ("reward", lambda a: np.where(np.arange(len(a))[:, None] == 3, np.nan, a), "not finite"),
        ("action", lambda a: 1.5 + 0 * a, r"outside of \[-1, 1\]"),
    ],
)
def test_values_that_no_loss_can_use(folder, key, spoil, message):
    path = folder / "reach-v3.safetensors"
    arrays = load_file(path)
    save_file(arrays | {key: spoil(arrays[key])}, path)
    with pytest.raises(DataError, match=f"reach-v3.safetensors: {key} .*{message}"):
        TrajectoryDataset.load(folder, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format="other"), "not a file of format"),
        (lambda raw: raw.update(format_version=99), "format_version is 99"),
        (lambda raw: raw.update(tasks=[]), r"tasks is \[\]: it must be a valid dictionary"),
        (lambda raw: raw.pop("settings"), "settings is missing"),
        (lambda raw: raw.update(data_hash="0"), "data_hash does not fit"),
        (
            lambda raw: raw["tasks"]["reach-v3"].pop("file"),
            "tasks.reach-v3.file is missing",
        ),
        (
            lambda raw: raw["tasks"].update(x=raw["tasks"]["push-v3"]),
            "task 'x' is not in the task table",
        ),
    ],
)
def test_a_wrong_manifest(folder, change, message):
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message) as caught:
        TrajectoryDataset.load(folder)
    assert str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        TrajectoryDataset.load(folder)


def test_data_of_before_the_expert_s_actions_are_read_without(folder):
    data = TrajectoryDataset.load(folder)
    assert data.transitions["expert_action"].shape == (120, 4)
    path = folder / "reach-v3.safetensors"
    arrays = load_file(path)
    del arrays["expert_action"]
    record = Manifest.read(folder).tasks["reach-v3"]
    header = json.dumps({"settings": SETTINGS.to_dict(), "episodes": record.episodes})
    save_file(arrays, path, {"collection": header})
    manifest = Manifest.read(folder)
    manifest.tasks["reach-v3"] = replace(record, sha256=file_sha256(path))
    manifest.write(folder)
    assert "expert_action" not in TrajectoryDataset.load(folder, ["reach-v3"]).transitions
    # Complete for what is asked of it, the folder is used; nothing is added to it.
    asked = ["reach-v3"]
    assert collect_metaworld(folder, asked, SETTINGS, progress=False) == manifest
    with pytest.raises(DataError, match="collected by an earlier version, without expert_action"):
        collect_metaworld(folder, ["reach-v3", "door-lock-v3"], SETTINGS, progress=False)


def test_time_to_go_counts_the_steps_until_success(folder):
    dataset = TrajectoryDataset.load(folder)
    success = dataset.transitions["next", "success"]
    success[[5, 6, 40]] = True
    changed = dataset.with_time_to_go()
    assert torch.equal(changed.transitions["next", "reward"], success.float() - 1)
    assert changed.transitions["next", "terminated"][success].all()
    assert not changed.transitions["next", "terminated"][~success].any()
    assert torch.equal(changed.transitions["next", "done"], dataset.transitions["next", "done"])
    assert dataset.transitions["next", "reward"].max() > 0  # it is another's
