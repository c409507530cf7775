"""Recordings: arrays that are read back, whatever acts."""

import numpy as np
import pytest

from llmdpd_torchrl.collection.record import record_episodes, write_episodes
from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, corners
from llmdpd_torchrl.utils.errors import UserError


def make(**options):
    return GymnasiumEnv("llmdpd/Corner-v0", success=SuccessRule(info="is_success"), **options)


def test_what_was_recorded_is_read_back(tmp_path):
    env = make()
    arrays = record_episodes(env, corners.go_ne, 3, noise=0.2, seed=1, progress=False)
    write_episodes(tmp_path / "ne.npz", arrays)
    data = load_episodes(tmp_path / "ne.npz")
    assert data.tasks == ("ne",)
    assert data.trajectory_success.all()
    assert np.array_equal(data.transitions["action"].numpy(), arrays["actions"])
    again = record_episodes(make(), corners.go_ne, 3, noise=0.2, seed=1, progress=False)
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)


def test_an_episode_goes_on_after_its_success():
    env = make(stop_on_success=False)
    arrays = record_episodes(env, corners.go_ne, 2, steps_after_success=5, progress=False)
    ends = arrays["timeouts"].nonzero()[0]
    starts = [0, ends[0] + 1]
    first = [start + arrays["infos/success"][start:].argmax() for start in starts]
    assert (ends - first).tolist() == [5, 5]
    with pytest.raises(UserError, match="stop_on_success=False"):
        record_episodes(make(), corners.go_ne, 1, steps_after_success=5, progress=False)


def test_actions_are_in_the_environments_units():
    env = GymnasiumEnv("Pendulum-v1", max_steps=4)
    arrays = record_episodes(env, lambda observation: [5.0], 1, progress=False)
    assert (arrays["actions"] == 2.0).all()
    assert arrays["timeouts"].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda observation: [1.0], "needs 2 finite numbers"),
        (lambda observation: [np.nan, 0.0], "needs 2 finite numbers"),
        (
            lambda observation: observation["x"],
            "fails on an observation [2]: IndexError",
        ),
    ],
)
def test_a_policy_that_does_not_fit_is_one_line(act, says):
    with pytest.raises(UserError) as raised:
        record_episodes(make(), act, 1, progress=False)
    assert says in str(raised.value)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "a.npz").touch()
    with pytest.raises(UserError, match="is there already"):
        write_episodes(tmp_path / "a.npz", {})
    with pytest.raises(UserError, match=r"ends in \.npz"):
        write_episodes(tmp_path / "a.hdf5", {})
