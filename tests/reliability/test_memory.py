"""What does not fit into memory is refused in one line, before it is read."""

import h5py
import numpy as np
import pytest
import torch

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset, load_episodes
from llmdpd_torchrl.data.replay import place_buffer
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture
def short_of_memory(monkeypatch):
    """A machine that has so many bytes left."""

    def leave(size):
        monkeypatch.setattr("llmdpd_torchrl.utils.memory.available_memory", lambda: size)

    return leave


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    settings = CollectionSettings(episodes_per_task=1, max_steps=20)
    collect_metaworld(folder, ["reach-v3", "push-v3"], settings, workers=1, progress=False)
    return folder


def refused(match):
    return pytest.raises(ConfigError, match=f"{match}.* needs about .* GiB of memory.*: [a-z]")


def test_tasks_that_do_not_fit_are_not_read(collected, short_of_memory, monkeypatch):
    size = sum(file.stat().st_size for file in collected.glob("*.safetensors"))
    short_of_memory(2 * size - 1)
    with monkeypatch.context() as patched:
        patched.setattr("llmdpd_torchrl.data.dataset.load_file", None)  # may not be called
        with refused(rf"{collected.name} \(2 tasks\)"):
            TrajectoryDataset.load(collected)
    assert TrajectoryDataset.load(collected, ["reach-v3"]).tasks == ("reach-v3",)
    short_of_memory(2 * size)
    assert len(TrajectoryDataset.load(collected).tasks) == 2


def write_hdf5(path, rows, kind=np.float32, **more):
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((rows, 3), kind)
        file["actions"] = np.zeros((rows, 2), kind)
        file["rewards"] = np.zeros(rows, kind)
        for key in ("terminals", "timeouts"):
            file[key] = np.arange(rows) % 10 == 9
        for key, value in more.items():
            file[key] = value
    return path


def test_a_file_that_does_not_fit_is_not_read_but_can_be_mapped(tmp_path, short_of_memory):
    path = write_hdf5(tmp_path / "a.hdf5", 1000)
    short_of_memory(50_000)
    with refused(r"a\.hdf5") as error:
        load_episodes(path)
    assert "root=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(load_episodes(path, root=tmp_path / "mapped", progress=False).lengths) == 100
    short_of_memory(200_000)
    assert len(load_episodes(path).lengths) == 100


def test_what_is_made_of_a_file_counts(tmp_path, short_of_memory):
    successors = {"next_observations": np.zeros((1000, 3), np.float32)}
    short_of_memory(60_000)
    assert load_episodes(write_hdf5(tmp_path / "with.hdf5", 1000, **successors))
    with refused("without"):  # half the file, but its successors are made here
        load_episodes(write_hdf5(tmp_path / "without.hdf5", 1000))
    with refused("double"):
        load_episodes(write_hdf5(tmp_path / "double.hdf5", 1000, np.float64, **successors))


def test_a_shape_that_is_a_lie_is_not_believed(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", 10)
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_dataset("observations", (10, 10**14), np.float32, chunks=(1, 1000))
    with refused(r"a\.hdf5"):
        load_episodes(path)


def test_several_files_that_fit_one_by_one(tmp_path, short_of_memory):
    paths = [write_hdf5(tmp_path / f"{name}.hdf5", 1000) for name in "abcd"]
    short_of_memory(150_000)
    assert load_episodes(paths[0])
    with refused("putting 4 recordings together"):
        load_episodes(paths)


def test_a_buffer_stays_in_memory_if_the_device_is_too_small(collected, monkeypatch, capsys):
    data = TrajectoryDataset.load(collected)
    free = 2 * data.transitions.bytes() - 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    buffer = data.replay_buffer(3)
    assert not place_buffer(buffer, torch.device("cuda:0"))
    assert "cuda:0: batches are copied there" in capsys.readouterr().err
    assert buffer.sample()["observation"].device.type == "cpu"
