"""How many threads tests have; a small dataset that is collected once, and prompts from it."""

import os

import pytest
import torch

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.processes import LocalBackend

# One thread a process, also of those that the tests start: several test processes run at once, and
# threads that wait for each other on a busy machine are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Three successful episodes each of two tasks."""
    folder = tmp_path_factory.mktemp("dataset")
    settings = CollectionSettings(episodes_per_task=3, noise_levels=(0.0, 0.1))
    collect_metaworld(folder, ["reach-v3", "window-open-v3"], settings, progress=False)
    dataset = TrajectoryDataset.load(folder)
    assert dataset.trajectory_success.all()
    return dataset


@pytest.fixture(scope="session")
def backend():
    """One worker process for all evaluations: to start one takes longer than most tests."""
    backend = LocalBackend(1)
    close, backend.close = backend.close, lambda: None  # evaluators close what they are given
    yield backend
    close()


@pytest.fixture
def bank(dataset):
    return TrajectoryPromptBank.from_dataset(dataset, 16)


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
