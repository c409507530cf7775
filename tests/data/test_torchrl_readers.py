"""What TorchRL's own reader of D4RL makes of a file, and what ours makes of it.

Each test first checks ours. If TorchRL has mended the flaw that it documents, it is skipped.
"""

import importlib.metadata
import importlib.util
import sys

import numpy as np
import pytest
import torch
from torchrl.data.datasets import D4RLExperienceReplay
from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS

from llmdpd_torchrl.data import load_episodes

ROWS = 12
NAME = "line-medium-v0"


@pytest.fixture
def contents(make_contents):
    """Ends at rows 4 (time-out), 8 (terminal) and 11 (terminal)."""
    return make_contents(("time_out", 5), ("fall", 4), ("fall", 3))


@pytest.fixture
def path(tmp_path, monkeypatch, write_hdf5, contents):
    path = write_hdf5(tmp_path / "line.hdf5", contents)
    monkeypatch.setitem(D4RL_DATASETS, NAME, path.as_uri())
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))  # which TorchRL sets and leaves set
    return path


@pytest.fixture
def theirs(path, tmp_path):
    buffer = D4RLExperienceReplay(
        NAME, batch_size=1, root=tmp_path / "theirs", direct_download=True, prefetch=0
    )
    return buffer[:]


def flawed(flaw, what):
    if not flaw:
        version = importlib.metadata.version("torchrl")
        pytest.skip(f"torchrl {version} has mended: {what}")


def test_the_last_row_is_kept(path, theirs, contents):
    ours = load_episodes(path).transitions
    assert len(ours) == ROWS
    assert ours["next", "terminated"][-1]
    assert ours["next", "reward"][-1, 0] == contents["rewards"][-1]
    flawed(len(theirs) == ROWS - 1, "the last row is dropped")


def test_successors_at_ends_are_true(path, theirs, contents):
    ours = load_episodes(path).transitions["next", "observation"]
    successors = torch.from_numpy(contents["next_observations"])
    assert torch.equal(ours, successors)
    ends = [4, 8]
    assert successors[ends].all()
    flawed(not theirs["next", "observation"][ends].any(), "successors at ends are zero")


def test_no_first_row_is_done(path, theirs):
    ours = load_episodes(path)
    assert "done" not in ours.transitions
    assert not ours.transitions["next", "done"][ours.starts].any()
    first = [5, 9]
    flawed(theirs["done"][first].all(), "done is shifted onto the next episode's first row")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_unusable_d4rl_does_no_harm(path, tmp_path, monkeypatch):
    package = tmp_path / "broken"
    package.mkdir()
    (package / "d4rl.py").write_text("raise Exception('You appear to be missing MuJoCo')")
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    assert importlib.util.find_spec("d4rl") is not None
    assert len(load_episodes(NAME, cache=tmp_path, max_episode_steps=1000).transitions) == ROWS
    flaw = None
    try:
        D4RLExperienceReplay(NAME, batch_size=1, root=tmp_path / "theirs")
    except Exception as error:
        flaw = error
    flawed(flaw is not None, "an unusable d4rl breaks the default")
    assert "MuJoCo" in str(flaw)


def test_rows_are_not_all_zero(path):
    ours = load_episodes(path).transitions
    for key, column in ours.items(True, True):
        if key not in ("task_id",):
            assert np.any(column.numpy()), key
