import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts.demonstrations import finite_differences
from llmdpd_torchrl.prompts.spacing import Spacing, cut_trajectory, space_evenly
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError

FIELDS = {"hand": (0, 2), "gripper": (2, 3)}
UNITS = {"hand": 0.99, "gripper": 0.5}
METAWORLD = Spacing(
    {"hand_position": 0.01, "object_1_position": 0.01}, METAWORLD_OBSERVATION_LAYOUT["fields"]
)


def trajectory(length):
    steps = torch.arange(float(length)).unsqueeze(-1)
    return TensorDict(
        {"observation": steps + 1, "action": -steps - 1, "next": {"reward": 2 * steps}}, [length]
    )


@pytest.mark.parametrize(("length", "steps"), [(5, [0, 2, 5, 8, 10]), (11, list(range(11)))])
def test_a_cut_is_even_and_keeps_both_ends(length, steps):
    cut = cut_trajectory(trajectory(11), length)
    assert cut["mask"].all()
    assert cut["observation"].squeeze(-1).tolist() == [step + 1 for step in steps]
    assert cut["reward"].squeeze(-1).tolist() == [2 * step for step in steps]


def test_a_short_trajectory_is_padded():
    cut = cut_trajectory(trajectory(3), 5)
    assert cut["mask"].tolist() == [True] * 3 + [False] * 2
    assert cut["observation"].squeeze(-1).tolist() == [1, 2, 3, 0, 0]


def path(times, gripper=0.0):
    """A hand that is at ``(3 t, 4 t)`` at each of the times, acted on by ``t`` and rewarded 1."""
    times = torch.as_tensor(times, dtype=torch.float32)
    columns = [3 * times, 4 * times, torch.as_tensor(gripper, dtype=torch.float32) + 0 * times]
    steps = {
        "observation": torch.stack(columns, -1),
        "action": times.unsqueeze(-1),
        "next": {"reward": torch.ones(len(times), 1)},
    }
    return TensorDict(steps, [len(times)])


def test_steps_remain_at_even_distances():
    even = space_evenly(path(torch.arange(0, 41) / 40), UNITS, FIELDS, 99)  # an eighth apart
    assert even["observation"][:, 0].tolist() == pytest.approx([0, 0.6, 1.2, 1.8, 2.4, 3.0])
    assert even["action"].squeeze(-1).tolist() == pytest.approx(
        [0.0875, 0.2875, 0.4875, 0.6875, 0.8875, 1.0]
    )
    assert even["next", "reward"].squeeze(-1).tolist() == [8] * 5 + [1]


def test_speed_pauses_and_missing_steps_make_no_difference():
    whole = torch.arange(0, 401) / 40
    usual = space_evenly(path(whole), UNITS, FIELDS, 99)
    assert len(usual) == 51
    for times in (
        torch.arange(0, 1601) / 160,
        torch.cat([whole[:16], whole[16].expand(50), whole[16:]]),
        whole[::16],
        whole[[*range(25), *range(80, 401)]],
    ):
        even = space_evenly(path(times), UNITS, FIELDS, 99)
        assert abs(len(even) - len(usual)) <= 2  # in a gap they lie wider
        gaps = even["observation"].diff(dim=0).norm(dim=-1)[:-1]
        assert 0.98 < gaps.min() <= gaps.max() < 1.5


def test_gaps_are_interpolated_under_the_earlier_action():
    even = space_evenly(path([0.0, 1.0, 1.1]), UNITS, FIELDS, 99)
    assert len(even) == 6
    assert even["observation"][:4, 1].tolist() == pytest.approx([0, 1, 2, 3])
    assert even["action"].squeeze(-1).tolist() == pytest.approx([0, 0, 0, 0, 1.0, 1.1])
    far = space_evenly(path([0.0, 1e4]), UNITS, FIELDS, 99)
    assert len(far) == 41  # no gap has more


def test_any_field_that_moves_a_unit_counts():
    gripper = [0.0, 0.1, 0.6, 0.6, 0.7, 0.7]
    even = space_evenly(path([0.0] * 6, gripper), UNITS, FIELDS, 99)
    assert even["observation"][:, 2].tolist() == pytest.approx([0.0, 0.6, 0.7])


@pytest.mark.parametrize("length", [2, 3, 17, 100])
def test_units_grow_until_the_steps_fit(length):
    even = space_evenly(path(torch.arange(0, 400) / 4), UNITS, FIELDS, length)
    assert length / 1.6 <= len(even) <= length
    assert even["observation"][[0, -1], 0].tolist() == [0, 0.75 * 399]


def test_what_is_to_come_is_the_rewards_of_the_recording():
    trajectory = path(torch.arange(0, 30) / 7)
    trajectory["next", "reward"] = torch.rand(30, 1)
    cut = cut_trajectory(trajectory, 64, Spacing(UNITS, FIELDS))
    assert cut["return_to_go"][0].item() == pytest.approx(trajectory["next", "reward"].sum().item())
    steps = int(cut["mask"].sum())
    assert (cut["return_to_go"][: steps - 1] >= cut["return_to_go"][1:steps]).all()
    assert cut["reward"].sum().item() == pytest.approx(cut["return_to_go"][0].item())


def test_actions_of_another_space_remain_so():
    trajectory = path([0.0, 1.0, 2.0])
    trajectory["has_action"] = torch.zeros(3, dtype=torch.bool)
    cut = cut_trajectory(trajectory, 16, Spacing(UNITS, FIELDS))
    assert cut["mask"].sum() > 3
    assert not cut["has_action"].any()


def test_a_single_step_is_a_trajectory_too():
    assert len(space_evenly(path([1.0]), UNITS, FIELDS, 9)) == 1


def test_a_unit_of_no_field_is_named():
    with pytest.raises(ConfigError, match=r"trajectory_spacing has foot: .* fields are hand, grip"):
        space_evenly(path([0.0, 1.0]), {"hand": 1.0, "foot": 2.0}, FIELDS, 9)


def test_a_bank_of_a_dataset_and_one_of_demonstrations_are_spaced_alike(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 64, spacing=METAWORLD)
    several = {0: [dataset.trajectory(int(number)) for number in bank.trajectory_id]}
    same = TrajectoryPromptBank.from_rollouts(several, 64, spacing=METAWORLD)
    assert (bank.prompts == same.prompts.select(*bank.entries)).all()
    hand = bank.prompts["observation"][0, : int(bank.prompts["mask"][0].sum()), :3]
    assert (hand.diff(dim=0).norm(dim=-1)[:-1] < 0.025).all()
    usual = TrajectoryPromptBank.from_dataset(dataset, 64)
    assert not torch.equal(bank.prompts["observation"], usual.prompts["observation"])


@pytest.mark.parametrize("usable", [True, False])
def test_a_trajectory_is_there_as_recorded_too(dataset, usable):
    trajectory = dataset.trajectory(0)
    steps = len(trajectory)
    trajectory["has_action"] = torch.full((steps,), usable)
    cut = cut_trajectory(trajectory, 2 * steps, METAWORLD, recorded=True)
    assert cut["recorded_mask"].sum() == steps
    assert torch.equal(cut["recorded_observation"][:steps], trajectory["observation"])
    moved = finite_differences(trajectory, METAWORLD.fields)
    expected = trajectory["action"] if usable else moved
    assert torch.equal(cut["recorded_action"][:steps], expected)
    assert not torch.equal(trajectory["action"], moved)
