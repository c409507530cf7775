"""What a recording accepts, and what it refuses."""

import numpy as np
import pytest

from llmdpd_torchrl.data import Recording
from llmdpd_torchrl.utils.errors import DataError


def make(**changes):
    arrays = {
        "name": "line",
        "source": "file.hdf5",
        "observation": np.arange(10.0).reshape(5, 2),
        "next_observation": np.arange(10.0).reshape(5, 2) + 2,
        "action": np.linspace(-1, 1, 5)[:, None],
        "reward": np.arange(5),
        "terminated": [0, 0, 1, 0, 0],
        "truncated": [0, 0, 0, 0, 0],
    }
    return Recording(**(arrays | changes))


def test_casts_and_closes_the_unfinished_tail():
    recording = make(reward=np.arange(5, dtype=np.float64)[:, None])
    assert recording.observation.dtype == recording.reward.dtype == np.float32
    assert recording.reward.shape == (5,)
    assert recording.terminated.dtype == recording.truncated.dtype == np.bool_
    assert recording.truncated.tolist() == [False, False, False, False, True]
    assert recording.lengths.tolist() == [3, 2]


def test_a_terminated_end_is_not_truncated():
    assert not make(terminated=[0, 0, 1, 0, 1]).truncated.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.array([0, 1, np.nan, np.inf, 2])}, r"reward is not finite in 2 of 5 .* 2"),
        ({"observation": np.full((5, 2), np.nan)}, "observation is not finite"),
        ({"action": np.full((5, 1), 1.5)}, r"action reaches from 1.5 to 1.5, outside of \[-1, 1\]"),
        ({"action": np.zeros(5, dtype=np.int64)}, r"action has shape \(5,\), it must be \[rows, s"),
        ({"action": np.array([["a"]] * 5)}, "action is of type <U1, it must hold numbers"),
        ({"reward": np.zeros(4)}, r"reward has shape \(4,\), observation has 5"),
        ({"terminated": [0, 2, 0, 0, 0]}, "terminated must hold flags"),
        ({"terminated": [0, np.nan, 0, 0, 0]}, "terminated must hold flags"),
        ({"next_observation": np.zeros((5, 3))}, r"shape \(5, 3\), observation \(5, 2\)"),
        ({"infos": {"x": np.zeros(3)}}, r"infos/x has shape \(3,\), observation has 5 rows"),
        ({"action_range": (1.0, 1.0)}, "low must be less"),
        ({"action_range": (-np.inf, 1.0)}, "and both finite"),
        ({"action_range": ([-1, -1], [1, 1])}, "each one number or a list of 1"),
        ({"action_range": ("low", "high")}, "each one number or a list of 1"),
        ({"action_range": (1.0,)}, "give the lowest and the highest value"),
        ({"task_ids": [0, 1, 1, 0, 0]}, "the task id changes within an episode"),
        ({"task_ids": [0.5] * 5}, "integers"),
        ({"task_ids": [3] * 5, "task_names": ("a",)}, "has task id 3, but 1 task names"),
        ({"success": [0, 1]}, r"success has shape \(2,\), observation has 5 rows"),
    ],
)
def test_refuses_in_one_line_that_names_file_and_key(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        make(**changes)
    assert str(caught.value).startswith("file.hdf5: ")
    assert "\n" not in str(caught.value)


def test_refuses_no_rows():
    empty = {"observation": np.zeros((0, 2)), "next_observation": np.zeros((0, 2))}
    empty |= {"action": np.zeros((0, 1))}
    empty |= dict.fromkeys(("reward", "terminated", "truncated"), np.zeros(0))
    with pytest.raises(DataError, match="has no transition"):
        make(**empty)


def test_maps_actions_to_the_unit_range():
    recording = make(action=np.linspace(0, 4, 5)[:, None], action_range=(0, 4))
    assert recording.action[:, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_maps_every_component_of_an_action_by_its_own_range():
    action = np.stack([np.linspace(-1, 1, 5), np.linspace(0, 4, 5)], -1)
    recording = make(action=action, action_range=([-1, 0], [1, 4]))
    assert (recording.action == recording.action[:, :1]).all()
    assert recording.action[:, 1].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    with pytest.raises(DataError, match=r"from 0 to 4 in component 1, outside of \[0, 3\]"):
        make(action=action, action_range=([-1, 0], [1, 3]))


def test_rounding_beyond_the_range_is_clipped():
    action = np.full((5, 1), np.nextafter(np.float32(1), np.float32(2)))
    assert make(action=action).action.max() == 1.0


def test_tasks_have_names():
    assert make().task_names == ("line",)
    assert list(make(task_ids=[0, 0, 0, 1, 1]).task_names) == ["line/0", "line/1"]
