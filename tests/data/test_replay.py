"""TorchRL's dataset class over data in memory and data that are mapped."""

import gc
from pathlib import Path

import pytest
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.datasets.common import BaseDatasetExperienceReplay
from torchrl.data.replay_buffers import RandomSampler, SliceSampler
from torchrl.envs.transforms import RewardScaling

from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.utils.errors import DataError


@pytest.fixture(params=["memory", "mapped"])
def data(request, tmp_path, write_hdf5, make_contents):
    path = write_hdf5(tmp_path / "line.hdf5", make_contents(("fall", 6), ("time_out", 5)))
    return load_episodes(path, root=tmp_path / "root" if request.param == "mapped" else None)


def test_it_is_torchrls_dataset_class_and_refuses_writing(data):
    buffer = data.replay_buffer(4)
    assert isinstance(buffer, BaseDatasetExperienceReplay)
    assert len(buffer) == 11
    assert buffer._is_downloaded()
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        buffer.extend(data.transitions)
    stored = buffer.storage._storage["observation"]
    assert stored.data_ptr() == data.transitions["observation"].data_ptr()


def test_a_seed_samples_what_it_samples_of_a_plain_buffer(data):
    plain = TensorDictReplayBuffer(
        storage=LazyTensorStorage(11), sampler=RandomSampler(), batch_size=64, prefetch=None
    )
    plain.extend(data.transitions)
    plain.set_rng(torch.Generator().manual_seed(5))
    ours = data.replay_buffer(64, seed=5)
    for _ in range(3):
        sample, expected = ours.sample(), plain.sample()
        assert torch.equal(sample["index"], expected["index"])
        assert torch.equal(sample["next", "reward"], expected["next", "reward"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchrls_slices_are_of_one_episode(data):
    sampler = SliceSampler(end_key=("next", "done"), slice_len=3, strict_length=True)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(11), sampler=sampler, batch_size=30)
    buffer.extend(data.transitions)
    slices = buffer.sample().view(10, 3)
    assert (slices["trajectory_id"] == slices["trajectory_id"][:, :1]).all()
    assert (slices["step_count"].diff(dim=1) == 1).all()


def test_transforms_see_samples_and_leave_the_data(data):
    before = data.transitions["next", "reward"].clone()
    scaling = RewardScaling(loc=0.0, scale=2.0, in_keys=[("next", "reward")])
    buffer = data.replay_buffer(8, transforms=[scaling], seed=0)
    sample = buffer.sample()
    assert torch.equal(sample["next", "reward"], 2 * before[sample["index"]])
    assert torch.equal(data.transitions["next", "reward"], before)


def test_preprocess_makes_a_new_storage(data, tmp_path):
    storage = data.replay_buffer(4).preprocess(
        lambda row: row.select("observation", ("next", "reward")).set("sign", row["action"].sign()),
        num_workers=1,
        mp_start_method="fork",
        dest=tmp_path / "signs",
    )
    assert len(storage) == 11
    assert torch.equal(storage[:]["sign"], data.transitions["action"].sign())
    assert torch.equal(storage[:]["observation"], data.transitions["observation"])


def test_delete_removes_what_is_mapped_and_nothing_else(data, tmp_path):
    buffer = data.replay_buffer(4)
    if data.folder is None:
        with pytest.raises(DataError, match="in memory, not in a folder"):
            buffer.delete()
        assert buffer.root is None
        return
    assert buffer.data_path == data.folder
    assert buffer.data_path_root == buffer.root == tmp_path / "root"
    buffer.delete()
    assert not buffer._is_downloaded()
    assert (tmp_path / "line.hdf5").exists()
    with pytest.raises(DataError, match="in memory"):  # a part of it is no folder's data
        _ = data.select(torch.tensor([0])).replay_buffer(4).data_path


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="advice is read from /proc")
def test_only_mapped_columns_are_read_without_their_neighbours(data):
    """Of the flags that Linux shows of a mapping, rr means that nothing is read ahead."""
    data.replay_buffer(4)
    gc.collect()  # the mappings of the conversion
    flags = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            name = line.split()[-1]
        elif line.startswith("VmFlags:"):
            flags[name] = line.split()
    columns = {name: flag for name, flag in flags.items() if name.endswith(".memmap")}
    ours = {name: flag for name, flag in columns.items() if str(data.folder) in name}
    assert len(ours) == (0 if data.folder is None else 10)
    assert all("rr" in flag for flag in ours.values())
