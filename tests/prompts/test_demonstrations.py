"""Demonstrations with less in them: what is missing, and that the rest is as it was."""

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts import (
    DEMONSTRATIONS,
    TrajectoryPromptBank,
    change_demonstration,
    vary_demonstration,
)
from llmdpd_torchrl.prompts.demonstrations import held_grips
from llmdpd_torchrl.prompts.spacing import cut_trajectory
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture
def recorded(dataset):
    """Of the window, which is opened with a closed gripper; and the fields of its states."""
    task = dataset.manifest.task_table.index("window-open-v3")
    row = int((dataset.trajectory_task == task).nonzero()[0])
    return dataset.trajectory(row), dataset.manifest.observation_layout["fields"]


def test_every_tenth_step_and_the_last_are_left(recorded):
    trajectory, fields = recorded
    changed = change_demonstration(trajectory, "every_10th", fields)
    steps = [*range(0, len(trajectory), 10)]
    steps += [len(trajectory) - 1] * (steps[-1] < len(trajectory) - 1)
    assert changed["step_count"].squeeze(-1).tolist() == steps
    assert torch.equal(changed["action"], trajectory["action"][steps])


def test_a_random_half_is_missing_and_both_ends_are_there(recorded):
    trajectory, fields = recorded
    changed, again, other = (
        change_demonstration(trajectory, "half_missing", fields, seed=seed)["step_count"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(changed, again)
    assert changed.tolist() != other.tolist()
    steps = changed.squeeze(-1).tolist()
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, len(trajectory) - 1)
    assert len(trajectory) // 2 <= len(steps) <= len(trajectory) // 2 + 2


def test_states_alone_suggest_actions_by_what_moved(recorded):
    """The suggested movement has the direction of the recorded one, the gripper closes."""
    trajectory, fields = recorded
    changed = change_demonstration(trajectory, "states_only", fields)
    assert not changed["has_action"].any()
    assert torch.equal(changed["observation"], trajectory["observation"])
    moved = changed["action"]
    hand = trajectory["observation"][:, :3]
    torch.testing.assert_close(moved[:-1, :3], (hand.diff(dim=0) / 0.01).clamp(-1, 1))
    similarity = torch.cosine_similarity(moved[2:20, :3], trajectory["action"][2:20, :3])
    assert similarity.mean() > 0.5
    assert {round(grip, 1) for grip in moved[:, 3].tolist()} <= {-1.0, -0.5, 0.7}


def test_a_gripper_that_holds_goes_on_closing():
    opening = torch.tensor([1.0, 1.0, 0.8, 0.47, 0.51, 0.5, 0.5, 0.8, 0.8])
    expected = torch.tensor([-0.5, *[0.7] * 5, -1, -1])
    torch.testing.assert_close(suggested_grips(opening, carried_from=9), expected)


def test_a_gripper_that_carries_something_is_not_open():
    """What it holds may force it open; what it let go of may fly on while it opens."""
    opening = torch.tensor([1.0, 1.0, 0.8, 0.5, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0])
    held, opened = torch.tensor([-0.5, *[0.7] * 8]), torch.tensor([-0.5, *[0.7] * 2, *[-1.0] * 6])
    torch.testing.assert_close(suggested_grips(opening, carried_from=5), held)
    torch.testing.assert_close(suggested_grips(opening, carried_from=2, carried_to=5), opened)


def suggested_grips(opening, carried_from, carried_to=99):
    """Of states alone; the hand takes the object along, 2 cm a step, between the two steps."""
    steps = torch.arange(len(opening))
    way = 0.02 * (steps.clamp(carried_from, carried_to) - carried_from).unsqueeze(-1)
    states = torch.cat([way.expand(-1, 3), opening.unsqueeze(-1), way.expand(-1, 3)], -1)
    fields = {"hand_position": (0, 3), "gripper_opening": (3, 4), "object_1_position": (4, 7)}
    entries = {"observation": states[:-1], "next": {"observation": states[1:]}}
    recorded = TensorDict(
        {**entries, "action": torch.zeros(len(opening) - 1, 4)}, [len(opening) - 1]
    )
    return change_demonstration(recorded, "states_only", fields)["action"][:, 3]


def test_each_demonstration_of_several_has_its_own_grips():
    openings = torch.tensor([[1.0, 0.9, 0.8, 0.5, 1.0, 1.0, 0.99, 1.0]])
    start = torch.tensor([[0, 0, 0, 0, 4, 4, 4, 4]])
    carried, held = torch.zeros(1, 8), 0.7
    torch.testing.assert_close(
        held_grips(openings, carried, start), torch.tensor([[held] * 4 + [-0.5] * 4])
    )
    torch.testing.assert_close(
        held_grips(openings, carried), torch.tensor([[held] * 3 + [-1.0] * 5])
    )


def test_a_gripper_that_moves_slowly_turns_too():
    openings = torch.cat([torch.linspace(1, 0.4, 20), torch.full((9,), 0.4)]).unsqueeze(0)
    assert (held_grips(openings, torch.zeros(1, 29)) > 0).all()


def test_another_action_space_has_other_axes_and_the_same_gripper(recorded):
    trajectory, fields = recorded
    changed = change_demonstration(trajectory, "other_actions", fields)
    x, y, z, gripper = trajectory["action"].unbind(-1)
    expected = torch.stack([-0.6 * y, 0.6 * z, -0.6 * x, gripper], -1)
    torch.testing.assert_close(changed["action"], expected)
    assert not changed["has_action"].any()


@pytest.mark.parametrize("kind", DEMONSTRATIONS)
def test_the_recorded_one_is_left_alone_and_prompts_say_whether_actions_count(recorded, kind):
    trajectory, fields = recorded
    before = trajectory.clone()
    cut = cut_trajectory(change_demonstration(trajectory, kind, fields), 200)
    assert (trajectory == before).all()
    assert set(trajectory.keys()) == set(before.keys())
    counts = kind not in ("states_only", "other_actions")
    assert torch.equal(cut["has_action"], cut["mask"] & counts)


def test_an_unknown_kind_is_named(recorded):
    with pytest.raises(ConfigError, match="unknown demonstration 'sung': use one of as_recorded"):
        change_demonstration(recorded[0], "sung", recorded[1])


def test_banks_with_and_without_actions_are_one_bank(dataset):
    fields = dataset.manifest.observation_layout["fields"]
    usual = TrajectoryPromptBank.from_dataset(dataset, 16)
    states = TrajectoryPromptBank.from_dataset(
        dataset, 16, change=lambda each, row: change_demonstration(each, "states_only", fields)
    )
    both = TrajectoryPromptBank.concatenate([usual, states])
    assert both.prompts["has_action"].any(-1).tolist() == [True] * 6 + [False] * 6
    assert both.first(1).concatenated().prompts["has_action"].shape == (2, 16)


def test_at_random_some_lack_steps_and_some_actions(recorded):
    trajectory, _ = recorded
    before, steps = trajectory.clone(), len(trajectory)
    varied = [vary_demonstration(trajectory, [0, number]) for number in range(400)]
    lengths = torch.tensor([len(each) for each in varied])
    assert 0.22 < (lengths < steps).float().mean() < 0.38
    assert lengths.min() <= steps // 5
    states = [each for each in varied if "has_action" in each.keys()]  # noqa: SIM118
    assert 0.5 < len(states) / len(varied) < 0.7
    for each in varied:
        ends = each["observation"][[0, -1]]
        assert torch.equal(ends, before["observation"][[0, -1]])
        assert (each["step_count"].diff(dim=0) > 0).all()
    for each in states:
        assert not each["has_action"].any()
        assert not each["action"].any()
    assert (trajectory == before).all()
    again = vary_demonstration(trajectory, [0, 7])
    assert (again == varied[7]).all()
