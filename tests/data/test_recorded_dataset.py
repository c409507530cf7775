"""Recorded episodes as a dataset of TorchRL's parts."""

import math

import numpy as np
import pytest
import torch
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from llmdpd_torchrl.data import OfflineDataset, Recording
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import DataError


def recording(name="line", episodes=3, length=4, **more):
    rows = episodes * length
    observation = np.arange(2.0 * rows).reshape(rows, 2)
    arrays = {
        "observation": observation,
        "next_observation": observation + 2,
        "action": np.zeros((rows, 1)),
        "reward": np.arange(rows),
        "terminated": np.zeros(rows),
        "truncated": np.arange(rows) % length == length - 1,
    }
    return Recording(name=name, source=f"{name}.hdf5", **(arrays | more))


@pytest.fixture
def data():
    return OfflineDataset.from_recordings([recording("a"), recording("b", 2)])


def test_the_layout_is_that_of_collected_data(data, dataset):
    ours = {key for key in data.transitions.keys(True, True) if key != ("next", "success")}
    only_collected = (("next", "success"), "expert_action")
    theirs = {key for key in dataset.transitions.keys(True, True) if key not in only_collected}
    assert ours == theirs
    for key in ours:
        assert data.transitions[key].dtype == dataset.transitions[key].dtype, key
        assert data.transitions[key].ndim == dataset.transitions[key].ndim, key


def test_the_buffer_is_read_only_and_shares_the_data(data):
    buffer = data.replay_buffer(64, seed=0)
    assert isinstance(buffer, TensorDictReplayBuffer)
    assert buffer.storage._storage["observation"].data_ptr() == (
        data.transitions["observation"].data_ptr()
    )
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        buffer.extend(data.transitions)
    sample = buffer.sample()
    assert torch.equal(sample["next", "observation"], sample["observation"] + 2)
    assert torch.equal(
        sample["observation"], data.replay_buffer(64, seed=0).sample()["observation"]
    )


def test_a_memory_mapped_storage_gives_back_what_it_was_given(data, tmp_path):
    """Names stay in the manifest: strings in such a storage come back wrong without a word."""
    storage = LazyMemmapStorage(len(data.transitions), scratch_dir=tmp_path)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
    buffer.extend(data.transitions)
    stored = buffer[:].exclude("index")
    assert set(stored.keys(True, True)) == set(data.transitions.keys(True, True))
    assert (stored == data.transitions).all()


def test_selecting_episodes_renumbers_them(data):
    chosen = data.select(data.trajectory_task == 1)
    assert chosen.tasks == ("b",)
    assert chosen.manifest.task_table == ["a", "b"]
    assert chosen.transitions["trajectory_id"].squeeze(-1).tolist() == [0] * 4 + [1] * 4
    assert list(chosen.manifest.tasks) == ["b"]
    assert (data.select(torch.tensor([3, 4])).transitions == chosen.transitions).all()
    with pytest.raises(DataError, match="no episode is selected"):
        data.select(data.trajectory_return > 1e9)


def test_success_is_unknown_until_it_is_said(data):
    assert math.isnan(data.manifest.episode_success)
    with pytest.raises(DataError, match="carry no success flag"):
        TrajectoryPromptBank.from_dataset(data, 3)
    best = torch.tensor([False, True, True, False, True])
    marked = data.with_success(best)
    assert torch.equal(marked.trajectory_success, best)
    assert marked.manifest.episode_success == 0.6
    assert ("next", "success") not in data.transitions.keys(True)
    bank = TrajectoryPromptBank.from_dataset(marked, 3)
    assert bank.trajectory_id.tolist() == [1, 2, 4]


def test_returns_and_records(data):
    assert data.trajectory_return.tolist() == [6.0, 22.0, 38.0, 6.0, 22.0]
    record = data.manifest.tasks["a"]
    assert (record.transitions, record.mean_return) == (12, 22.0)
    assert [episode["length"] for episode in record.episodes] == [4, 4, 4]


def test_the_hash_is_that_of_the_data(data):
    again = OfflineDataset.from_recordings([recording("a"), recording("b", 2)])
    other = OfflineDataset.from_recordings([recording("a"), recording("b", 2, reward=np.ones(8))])
    assert data.manifest.data_hash == again.manifest.data_hash != other.manifest.data_hash
    assert data.manifest.tasks["a"].sha256 == other.manifest.tasks["a"].sha256


def test_recordings_of_one_task_are_one_task():
    data = OfflineDataset.from_recordings([recording("a"), recording("a", 2)])
    assert data.tasks == ("a",)
    assert data.transitions["trajectory_id"].unique().tolist() == [0, 1, 2, 3, 4]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="at least one file"):
        OfflineDataset.from_recordings([])
    with_info = recording("b", infos={"x": np.zeros(12)})
    with pytest.raises(DataError, match=r"b.hdf5: infos/x is float64\[\], that of a.hdf5 absent"):
        OfflineDataset.from_recordings([recording("a"), with_info])
