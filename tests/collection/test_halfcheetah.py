"""The data set that is rolled where there is no file: D4RL's layout, and speeds that are kept."""

import h5py
import numpy as np
import pytest
import torch

from llmdpd_torchrl.collection.halfcheetah import GAIT_HELD_OUT, GAIT_SPEEDS, collect_gait
from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.envs import HalfCheetahVelocityEnv
from llmdpd_torchrl.experiments.locomotion import read_speeds
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gait")
    return collect_gait(folder / "new" / "gait.hdf5", episodes=4, progress=False)


def test_the_file_is_read_like_any_other(path):
    data = load_episodes(path, task_key="task_id")
    assert data.lengths.tolist() == [200] * 4 * len(GAIT_SPEEDS)
    assert data.manifest.environment == "HalfCheetah-v4"
    following = data.transitions["next"]
    assert following["truncated"].sum() == len(data.lengths)
    assert not following["terminated"].any()


def test_the_body_runs_at_the_speeds(path):
    data = load_episodes(path, task_key="task_id")
    speed = data.transitions["observation"][:, 8].reshape(-1, 200)[:, 50:].mean(-1)
    target = torch.tensor(GAIT_SPEEDS)[data.trajectory_task]
    is_noisy = torch.arange(len(speed)) % 4 == 3
    assert (speed - target)[~is_noisy].abs().max() < 0.15
    assert (speed - target)[is_noisy].abs().max() < 0.4


def test_rewards_are_the_environments(path):
    data = load_episodes(path, task_key="task_id")
    episode = data.trajectory(17)  # of the fifth speed
    env = HalfCheetahVelocityEnv(GAIT_SPEEDS[4], seed=0)
    env.choose_episode(4 * 5 + 1 + 1)
    assert np.array_equal(env.begin(), episode["observation"][0].numpy())
    for row in range(5):
        step = env.advance(episode["action"][row].numpy())
        assert step.reward == pytest.approx(float(episode["next", "reward"][row]), abs=1e-6)
        assert np.array_equal(step.observation, episode["next", "observation"][row].numpy())
    env.close()


def test_references_are_between_random_and_the_gait(path):
    tasks, horizon = read_speeds(path)
    assert horizon == 200
    assert [task["target_velocity"] for task in tasks if task["split"] == "test"] == list(
        GAIT_HELD_OUT
    )
    data = load_episodes(path, task_key="task_id")
    for number, task in enumerate(tasks):
        returns = data.trajectory_return[data.trajectory_task == number]
        assert task["ref_max"] == pytest.approx(float(returns[:3].mean()), rel=1e-5)
        assert task["ref_min"] < float(returns.min())


def test_the_seed_decides_the_data_and_a_file_is_kept(path, tmp_path):
    def column(name, seed):
        made = collect_gait(tmp_path / name, episodes=1, steps=5, seed=seed, progress=False)
        with h5py.File(made) as file:
            return file["actions"][()], made.stat().st_mtime_ns

    first, when = column("a.hdf5", 0)
    assert np.array_equal(first, column("b.hdf5", 0)[0])
    assert not np.array_equal(first, column("c.hdf5", 1)[0])
    assert column("a.hdf5", 1)[1] == when


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="episodes is 0"):
        collect_gait(tmp_path / "a.hdf5", episodes=0)
    with pytest.raises(ConfigError, match="cannot create the data folder"):
        collect_gait("/dev/null/x/a.hdf5")
