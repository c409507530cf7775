"""Protocols: which tasks there are, what they are told, and which data fit them."""

import json

import h5py
import numpy as np
import pytest

from llmdpd_torchrl.data import OfflineDataset, Recording
from llmdpd_torchrl.envs import Dynamics
from llmdpd_torchrl.experiments.locomotion import (
    level_codes,
    level_protocol,
    read_speeds,
    speed_protocol,
)
from llmdpd_torchrl.utils.errors import ConfigError, DataError

SPEEDS = [
    {"target_velocity": 0.5 * n, "split": "test" if n == 4 else "train", "ref_min": -9.0 * n,
     "ref_max": -1.0 * n}
    for n in range(1, 9)
]  # fmt: skip


def test_speeds_are_parted_as_the_file_says():
    protocol = speed_protocol(SPEEDS, 200)
    assert protocol.split.held_out == ("halfcheetah-vel-2",)
    assert len(protocol.split.train) == 7
    suite = protocol.suite(seed=3, max_steps=None, dynamics=Dynamics(gravity=0.5))
    env = suite.make("halfcheetah-vel-2")
    assert env.target_velocity == 2.0
    assert int(env.reset()["task_id"]) == 3 == protocol.split.table.index("halfcheetah-vel-2")
    assert env.simulator.unwrapped.model.opt.gravity[2] == pytest.approx(-9.81 / 2)
    env.close()
    assert suite.score("halfcheetah-vel-2", -20.0) == pytest.approx(50.0)
    assert "two point" not in protocol.prompts["halfcheetah-vel-2"].objective
    assert protocol.codes["halfcheetah-vel-2"] == 2.0


def test_validation_leaves_the_held_out_speeds_alone():
    split = speed_protocol(SPEEDS, 200, validation=True).split
    assert "halfcheetah-vel-2" not in split.tasks
    assert split.held_out == ("halfcheetah-vel-1.5",)
    assert len(split.train) == 6


def test_levels_have_d4rls_texts_and_scores():
    protocol = level_protocol(["x/hopper_medium_replay.hdf5", "d4rl:hopper-medium-v2"],
                              ["minari:mujoco/hopper/expert-v0"])  # fmt: skip
    assert protocol.split.train == ("hopper_medium_replay", "hopper-medium-v2")
    assert protocol.split.held_out == ("mujoco/hopper/expert-v0",)
    texts = {name: prompt.task for name, prompt in protocol.prompts.items()}
    assert texts["hopper-medium-v2"] == "Hop forward on one leg at a moderate pace."
    assert len(set(texts.values())) == 3
    assert all(prompt.name == name for name, prompt in protocol.prompts.items())
    suite = protocol.suite(0, 50, Dynamics())
    assert suite.score("mujoco/hopper/expert-v0", 3234.3) == 100.0
    assert suite.variants["hopper-medium-v2"]["max_steps"] == 50


def test_other_recordings_are_told_by_their_name():
    protocol = level_protocol(["walker_limping.h5"], [], environment="Walker2d-v4")
    assert "walker limping" in protocol.prompts["walker_limping"].task
    with pytest.raises(ConfigError, match="environment is None, and 'mine' is not named"):
        level_protocol(["mine.hdf5"], [])
    with pytest.raises(ConfigError, match=r"data\.environment is 'Ant-v4'"):
        level_protocol(["mine.hdf5"], [], environment="Ant-v4")
    with pytest.raises(ConfigError, match="occurs twice"):
        level_protocol(["a/hopper.hdf5", "b/hopper.hdf5"], [])


def dataset(*names):
    def recording(name, reward):
        return Recording(
            name=name, source=name, observation=np.zeros((4, 11)),
            next_observation=np.zeros((4, 11)), action=np.zeros((4, 3)),
            reward=np.full(4, reward), terminated=np.zeros(4), truncated=np.arange(4) % 2,
        )  # fmt: skip

    return OfflineDataset.from_recordings([recording(n, 100.0 * i) for i, n in enumerate(names)])


def test_data_take_the_names_of_the_table():
    protocol = level_protocol(["hopper_medium.hdf5", "hopper_expert.hdf5"], [])
    named = protocol.name_tasks(dataset("a", "b"))
    assert named.tasks == ("hopper_medium", "hopper_expert")
    assert list(named.manifest.tasks) == ["hopper_medium", "hopper_expert"]
    codes = level_codes(named, protocol)
    assert codes["hopper_medium"] == pytest.approx(100 * 20.272305 / 3254.572305)
    assert codes["hopper_expert"] == pytest.approx(100 * 220.272305 / 3254.572305)
    with pytest.raises(DataError, match=r"hold 1 tasks \(a\), not the 2"):
        protocol.name_tasks(dataset("a"))


@pytest.mark.parametrize(
    "change",
    [{"target_velocity": "fast"}, {"split": "maybe"}, {"ref_min": None}],
)
def test_a_damaged_table_of_speeds_is_one_line(tmp_path, change):
    path = tmp_path / "speeds.hdf5"
    tasks = [SPEEDS[0] | change]
    with h5py.File(path, "w") as file:
        file.attrs["tasks"] = json.dumps(tasks)
    with pytest.raises(DataError, match="attribute 'tasks' is damaged") as caught:
        read_speeds(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_of_speeds(tmp_path):
    assert read_speeds("hopper-medium-v2") is None
    path = tmp_path / "plain.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["tasks"] = "a line of text"
    assert read_speeds(path) is None
    path.write_bytes(b"not an HDF5 file")
    assert read_speeds(path) is None
