"""The package d4rl itself: its episodes are ours, and without it everything works.

It does not install beside this stack as a dependency: ``LLMDPD_TEST_D4RL`` names a folder that it
was put into by the command below, or it can be imported anyway. ``LLMDPD_TEST_DATA`` may name a
folder of real files; without it, small ones are made.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmdpd_torchrl.data import load_episodes

PIP = "pip install --no-deps --target FOLDER d4rl==1.1 gym==0.24.1 gym_notices"
REAL = ("hopper_medium", "halfcheetah_medium_replay", "walker2d_expert")
MADE = {
    "falls": (("fall", 5), ("fall", 1), ("fall", 7)),
    "time_outs": (("time_out", 6), ("time_out", 6)),
    "mixed": (("time_out", 6), ("fall", 2), ("fall", 4), ("time_out", 6), ("fall", 3)),
}
COLUMNS = {
    "observations": "observation",
    "actions": "action",
    "rewards": ("next", "reward"),
    "terminals": ("next", "terminated"),
    "timeouts": ("next", "truncated"),
    "next_observations": ("next", "observation"),
}

# Whatever a d4rl environment is of, reading its file is inherited from OfflineEnv. The file is
# where a download would have put it.
_ENVIRONMENT = """
import sys
import d4rl, numpy as np
from d4rl.offline_env import OfflineEnv
from gym.spaces import Box

path, output, size, actions, limit = sys.argv[1:6]

class Env(OfflineEnv):
    observation_space = Box(-np.inf, np.inf, (int(size),))
    action_space = Box(-1.0, 1.0, (int(actions),))
    _max_episode_steps = int(limit)

env = Env(dataset_url="https://example.invalid/" + path.rpartition("/")[2])
"""
_THEIRS = (
    _ENVIRONMENT
    + """
dataset = env.get_dataset()
episodes = list(d4rl.sequence_dataset(
    env, {k: v for k, v in dataset.items() if not k.startswith("metadata/")}
))
arrays = {k: np.concatenate([e[k] for e in episodes]) for k in episodes[0] if "/" not in k}
np.savez(output, lengths=[len(e["rewards"]) for e in episodes], **arrays)
if any(k.startswith("metadata/") for k in dataset):
    try:
        list(d4rl.sequence_dataset(env, dataset))
        print("metadata do no harm")
    except IndexError:
        print("metadata are indexed")
"""
)
_OURS = (
    _ENVIRONMENT
    + """
from llmdpd_torchrl.data import load_episodes
data = load_episodes(env)
print(data.tasks[0], data.manifest.tasks[data.tasks[0]].sha256)
"""
)


def run(code, *arguments, path=(), **environment):
    """Python in a process of its own, with more folders to import from."""
    paths = [os.getcwd(), *map(str, path)]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def d4rl_folders():
    folder = os.environ.get("LLMDPD_TEST_D4RL")
    if folder:
        assert (Path(folder) / "d4rl").is_dir(), f"LLMDPD_TEST_D4RL={folder}: d4rl is not in it"
        return [folder]
    if importlib.util.find_spec("d4rl") is None:
        pytest.skip(f"needs d4rl: {PIP}, and LLMDPD_TEST_D4RL=FOLDER")
    return []


@pytest.fixture
def in_d4rl(d4rl_folders, tmp_path):
    """Runs code with an environment of d4rl's that has the file; returns the lines it prints."""

    def call(code, path, limit=1000):
        data = load_episodes(path, max_episode_steps=limit).transitions
        size, actions = data["observation"].shape[1], data["action"].shape[1]
        process = run(
            code, path, tmp_path / "theirs.npz", size, actions, limit,
            path=d4rl_folders, D4RL_DATASET_DIR=str(path.parent),
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    return call


@pytest.fixture
def theirs(in_d4rl, tmp_path):
    """d4rl's episodes of a file."""

    def read(path, limit=1000):
        in_d4rl(_THEIRS, path, limit)
        return dict(np.load(tmp_path / "theirs.npz"))

    return read


@pytest.mark.parametrize("index", range(3))
def test_our_episodes_are_d4rls(index, in_d4rl, theirs, tmp_path, make_contents, write_hdf5):
    folder = os.environ.get("LLMDPD_TEST_DATA")
    if folder:
        path = Path(folder) / f"{REAL[index]}.hdf5"
    else:
        name = list(MADE)[index]
        path = write_hdf5(tmp_path / f"{name}.hdf5", make_contents(*MADE[name]))
    ours = load_episodes(path)
    episodes = theirs(path)
    assert ours.lengths.tolist() == episodes["lengths"].tolist()
    for key, column in COLUMNS.items():
        array = ours.transitions[column].numpy()
        assert np.array_equal(array.reshape(episodes[key].shape), episodes[key]), key
    # The environment itself, in d4rl's process, gives the same data as its file in this one.
    (record,) = ours.manifest.tasks.values()
    assert in_d4rl(_OURS, path)[-1] == f"Env {record.sha256}"


def test_d4rl_drops_an_unfinished_tail_that_we_truncate(
    theirs, tmp_path, make_contents, write_hdf5
):
    contents = make_contents(("fall", 5), ("time_out", 4), ("break_off", 3))
    path = write_hdf5(tmp_path / "tail.hdf5", contents)
    episodes = theirs(path)
    assert episodes["lengths"].tolist() == [5, 4]
    ours = load_episodes(path)
    assert ours.lengths.tolist() == [5, 4, 3]
    assert ours.transitions["next", "truncated"][-1]


def test_d4rl_counts_a_step_too_many_where_nothing_marks_time_outs(
    theirs, tmp_path, make_contents, write_hdf5
):
    """It begins with step 0 in the first episode and with 1 in all others, which lose a step."""
    contents = make_contents(*[("time_out", 6)] * 3)
    del contents["timeouts"]
    path = write_hdf5(tmp_path / "unmarked.hdf5", contents)
    episodes = theirs(path, limit=6)
    assert episodes["lengths"].tolist() == [6, 5, 5]
    assert load_episodes(path, max_episode_steps=6).lengths.tolist() == [6, 6, 6]


def test_d4rl_stumbles_over_metadata_that_we_pass_over(
    in_d4rl, tmp_path, make_contents, write_hdf5
):
    contents = make_contents(("fall", 5), ("time_out", 4)) | {"metadata/score": np.float64(3.0)}
    path = write_hdf5(tmp_path / "metadata.hdf5", contents)
    assert load_episodes(path).lengths.tolist() == [5, 4]
    assert in_d4rl(_THEIRS, path)[-1] == "metadata are indexed"


def test_everything_works_where_importing_d4rl_raises(tmp_path, make_contents, write_hdf5):
    (tmp_path / "d4rl.py").write_text("raise Exception('You appear to be missing MuJoCo')")
    path = write_hdf5(tmp_path / "hopper_medium.hdf5", make_contents(("fall", 5)))
    code = """if True:
        import sys
        from llmdpd_torchrl.data import export_d4rl, load_episodes
        from llmdpd_torchrl.tasks import normalized_score
        data = load_episodes(sys.argv[1])
        assert len(load_episodes(sys.argv[1], root=sys.argv[2]).transitions) == 5
        assert data.replay_buffer(4).sample().shape == (4,)
        export_d4rl(data, sys.argv[2] + "/again.hdf5")
        assert normalized_score("hopper-medium-v2", 3234.3) == 100.0
        assert "d4rl" not in sys.modules
    """
    process = run(code, path, tmp_path / "root", path=[tmp_path])
    assert process.returncode == 0, process.stderr
    assert "d4rl" not in process.stderr
