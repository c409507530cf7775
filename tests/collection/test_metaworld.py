import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP
from safetensors import safe_open
from safetensors.numpy import load_file

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld, collect_task
from llmdpd_torchrl.commands.data import main
from llmdpd_torchrl.data import Manifest, TrajectoryDataset
from llmdpd_torchrl.envs.metaworld import goal_seed, make_simulator, reset_simulator
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError, DataError

SETTINGS = CollectionSettings(episodes_per_task=2, max_steps=60, noise_levels=(0.0, 0.3))
TASKS = ("reach-v3", "window-open-v3")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    return folder, collect_metaworld(folder, TASKS, SETTINGS, progress=False)


def test_manifest_and_files(collected):
    folder, manifest = collected
    assert set(manifest.tasks) == set(TASKS)
    assert Manifest.read(folder) == manifest
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw["packages"]["mujoco"] == "3.3.0"
    assert raw["settings"]["noise_levels"] == [0.0, 0.3]
    assert raw["task_table"] == list(METAWORLD_TASKS.names)
    for name, record in manifest.tasks.items():
        arrays = load_file(folder / record.file)
        assert [e["noise"] for e in record.episodes] == [0.0, 0.3]
        assert len(arrays["action"]) == sum(e["length"] for e in record.episodes)
        assert (arrays["task_id"] == METAWORLD_TASKS.index(name)).all()
        assert abs(arrays["action"]).max() <= 1.0
        ends = arrays["truncated"].squeeze(-1).nonzero()[0].tolist()
        lengths = [e["length"] for e in record.episodes]
        assert ends == [lengths[0] - 1, sum(lengths) - 1]
        # Within an episode the next observation is the following row's observation.
        inner = slice(0, lengths[0] - 1)
        assert (arrays["next_observation"][inner] == arrays["observation"][1 : lengths[0]]).all()
    assert not list(folder.glob(".*tmp*"))


def test_observations_are_the_simulators_whatever_the_expert_does_with_them(tmp_path):
    """The expert of this task moves the object in the observation that it is given."""
    settings = CollectionSettings(episodes_per_task=1, max_steps=3)
    path = tmp_path / "door-close-v3.safetensors"
    list(collect_task("door-close-v3", path, settings))
    simulator = make_simulator("door-close-v3")
    seed = goal_seed(settings.seed, "door-close-v3", 0, "collection")
    expected = [reset_simulator(simulator, seed=seed)]
    arrays = load_file(path)
    expected += [simulator.step(action)[0] for action in arrays["action"]]
    simulator.close()
    assert np.array_equal(arrays["observation"], np.array(expected[:-1], np.float32))
    assert np.array_equal(arrays["next_observation"], np.array(expected[1:], np.float32))


@pytest.mark.integration
def test_workers_and_order_do_not_matter(collected, tmp_path):
    _, manifest = collected
    one = collect_metaworld(tmp_path, TASKS[1:], SETTINGS, workers=1, progress=False)
    assert set(one.tasks) == {TASKS[1]}
    both = collect_metaworld(tmp_path, TASKS[:1], SETTINGS, workers=1, progress=False)
    assert both == manifest


def test_what_is_there_is_not_collected_again(collected):
    folder, manifest = collected
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert collect_metaworld(folder, TASKS, SETTINGS, progress=False) == manifest
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert before == after


def test_data_of_another_simulator_are_told(collected, tmp_path, capsys):
    folder = shutil.copytree(collected[0], tmp_path / "copy")

    def said(**packages):
        path = folder / "manifest.json"
        written = json.loads(path.read_text())
        written["packages"] = collected[1].packages | packages
        path.write_text(json.dumps(written))
        collect_metaworld(folder, TASKS, SETTINGS, progress=False)
        return capsys.readouterr().err

    assert said() == said(numpy="1.0") == ""
    here = collected[1].packages["mujoco"]
    (line,) = said(mujoco="0.9").splitlines()
    assert line.startswith("note: ")
    assert f"were collected with mujoco 0.9 (here it is {here})" in line


def test_complete_data_may_be_read_only(collected, monkeypatch):
    folder, manifest = collected
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert collect_metaworld(folder, TASKS[:1], SETTINGS, progress=False) == manifest
    with pytest.raises(ConfigError, match="is not writable"):
        collect_metaworld(folder, ["drawer-close-v3"], SETTINGS, progress=False)


def test_other_settings_are_refused(collected):
    folder, _ = collected
    other = CollectionSettings(episodes_per_task=3, max_steps=60, noise_levels=(0.0, 0.3))
    with pytest.raises(DataError, match="another episodes_per_task; choose another folder"):
        collect_metaworld(folder, TASKS, other, progress=False)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "reach-v3.safetensors").write_bytes(b"\x10")
    with pytest.raises(DataError, match=r"reach-v3\.safetensors: damaged or cut short"):
        collect_metaworld(tmp_path, ["reach-v3"], SETTINGS, progress=False)


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the data folder"):
        collect_metaworld(tmp_path / "file" / "data", ["reach-v3"], SETTINGS, progress=False)


def test_every_settings_have_a_folder_of_their_own_in_the_cache(cache_folder):
    others = [{"episodes_per_task": 4}, {"seed": 1}, {"max_steps": 80}, {"noise_levels": (0.0,)},
              {"steps_after_success": 9}, {"expert_gain": 0.5}, {"retries": 1},
              {"behaviours": ({},)}, {"behaviours": ({"detour": True},)}]  # fmt: skip
    folders = {CollectionSettings(**{**asdict(SETTINGS), **other}).folder for other in others}
    assert len(folders | {SETTINGS.folder}) == len(others) + 1
    assert {folder.parent for folder in folders} == {cache_folder / "data" / "metaworld"}
    assert CollectionSettings(**SETTINGS.to_dict()).folder == SETTINGS.folder
    assert not SETTINGS.folder.exists()


def test_a_damaged_description_is_made_anew(collected, tmp_path):
    folder, manifest = collected
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"size": 39', '"size": 38'))
    assert collect_metaworld(tmp_path, TASKS, SETTINGS, progress=False) == manifest
    (tmp_path / f"{TASKS[0]}.safetensors").unlink()
    assert collect_metaworld(tmp_path, TASKS, SETTINGS, workers=1, progress=False) == manifest


@pytest.mark.parametrize(
    "wrong",
    [
        {"episodes_per_task": 0},
        {"noise_levels": ()},
        {"noise_levels": (-0.1,)},
        {"behaviours": ({"speed": 2},)},
        {"behaviours": ({"gain": 2.0},)},
        {"max_steps": 501},
        {"steps_after_success": -1},
        {"seed": -1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CollectionSettings(**wrong)


@pytest.mark.integration
def test_a_killed_collection_goes_on_to_the_same_data(tmp_path):
    tasks = ["reach-v3", "window-open-v3", "drawer-close-v3"]
    command = [sys.executable, "-m", "llmdpd_torchrl", "data", "collect", ""]
    command += ["--tasks", *tasks, "--episodes", "4", "--workers", "1"]

    def collect(folder):
        command[5] = str(folder)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert collect(whole).wait() == 0
    process = collect(broken)
    deadline = time.monotonic() + 120
    while not list(broken.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "manifest.json").exists()
    for path in broken.glob("*.safetensors"):  # whatever is there is whole
        with safe_open(path, framework="numpy") as file:
            assert "action" in file.keys()  # noqa: SIM118
    assert collect(broken).wait() == 0
    assert (whole / "manifest.json").read_bytes() == (broken / "manifest.json").read_bytes()
    assert Manifest.read(whole).data_hash == Manifest.read(broken).data_hash


def test_the_command_line_shows_a_dataset(collected, capsys):
    folder, manifest = collected
    assert main(["show", str(folder)]) == 0
    assert manifest.data_hash in capsys.readouterr().out
    assert main(["show", str(folder / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Constant")
def test_what_the_expert_wanted_lies_beside_what_was_executed(tmp_path):
    """Half as fast and disturbed, the expert wants what the undisturbed one does there."""
    settings = CollectionSettings(
        episodes_per_task=1, max_steps=20, noise_levels=[0.3], expert_gain=0.5
    )
    path = tmp_path / "reach-v3.safetensors"
    list(collect_task("reach-v3", path, settings))
    arrays = load_file(path)
    expert = ENV_POLICY_MAP["reach-v3"]()
    for observation, wanted, executed in zip(
        arrays["observation"], arrays["expert_action"], arrays["action"], strict=True
    ):
        action = np.clip(expert.get_action(observation.astype(np.float64)), -1, 1)
        assert np.allclose(wanted, action, atol=1e-5)
        assert not np.allclose(wanted, executed)
    assert arrays["expert_action"].dtype == np.float32


def test_one_dataset_holds_episodes_of_several_behaviours(tmp_path):
    mixed = [{"episodes": 2}, {"gain": 0.5, "noise": 0.1}, {"hand_pushes": 0.2}, {"detour": True}]
    settings = CollectionSettings(episodes_per_task=6, max_steps=30, behaviours=mixed)
    manifest = collect_metaworld(tmp_path, ["push-v3"], settings, workers=1, progress=False)
    usual = {"noise": 0.0, "gain": 1.0}
    keys = {*usual, "hand_pushes", "object_pushes", "detour", "episodes"}
    records = manifest.tasks["push-v3"].episodes
    assert [{key: one[key] for key in keys & one.keys()} for one in records] == [
        usual, usual, {"gain": 0.5, "noise": 0.1}, {**usual, "hand_pushes": 0.2},
        {**usual, "detour": True}, usual,
    ]  # fmt: skip
    data = TrajectoryDataset.load(tmp_path)
    differs = [
        bool((data.trajectory(e)["action"] != data.trajectory(e)["expert_action"]).any())
        for e in range(6)
    ]
    assert differs == [False, False, True, True, True, False]
    # The folder is that of these behaviours, and of nothing that they replace.
    assert CollectionSettings(**settings.to_dict()).folder == settings.folder
    other = CollectionSettings(episodes_per_task=6, max_steps=30, behaviours=mixed[:3])
    assert other.folder != settings.folder
    with pytest.raises(DataError, match="collected with another behaviours"):
        collect_metaworld(tmp_path, ["push-v3"], other, progress=False)
    same = CollectionSettings(**{**settings.to_dict(), "noise_levels": [0.7]})
    assert collect_metaworld(tmp_path, ["push-v3"], same, progress=False) == manifest


@pytest.mark.parametrize(
    ("fastest", "more"),
    [
        (0.7, []),
        (0.9, [0.75, 0.75, 0.85, 0.85, 0.95]),
        (1.1, [0.75, 0.75, 0.85, 0.85, 0.95, 0.95, 1.0, 1.0]),
    ],
)
def test_a_task_is_tried_again_and_then_faster_until_it_succeeds(
    tmp_path, monkeypatch, fastest, more
):
    """Nothing succeeds before a gain."""

    def episode(simulator, expert, settings, seed, behaviour):
        assert behaviour.hand_pushes == 0.1
        flag = np.array([[behaviour.gain >= fastest]])
        return {"action": np.zeros((1, 4), np.float32), "success": flag, "reward": flag * 1.0}

    monkeypatch.setattr("llmdpd_torchrl.collection.metaworld._expert_episode", episode)
    slow = {"gain": 0.75, "hand_pushes": 0.1}
    settings = CollectionSettings(episodes_per_task=1, behaviours=[slow], retries=2)
    path = tmp_path / "push-v3.safetensors"
    list(collect_task("push-v3", path, settings))
    with safe_open(path, framework="numpy") as file:
        records = json.loads(file.metadata()["collection"])["episodes"]
    assert [one["gain"] for one in records] == [0.75, *more]
    assert len({one["seed"] for one in records}) == 1 + len(more)


def test_experts_of_a_scene_take_turns_and_only_the_task_s_own_succeeds(tmp_path):
    settings = CollectionSettings(
        episodes_per_task=5, max_steps=150, behaviours=[{"expert": "scene", "episodes": 4}, {}]
    )
    manifest = collect_metaworld(tmp_path, ["drawer-open-v3"], settings, progress=False)
    episodes = manifest.tasks["drawer-open-v3"].episodes
    experts = ["drawer-open-v3", "drawer-close-v3"] * 2
    assert [episode.get("expert") for episode in episodes] == [*experts, None]
    assert [episode["success"] for episode in episodes] == [True, False, True, False, True]
    with pytest.raises(ConfigError, match="door-lock-v3 shares its scene with no other task"):
        collect_metaworld(tmp_path / "other", ["door-lock-v3"], settings, progress=False)
