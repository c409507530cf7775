import pytest
import torch

from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.prompts.spacing import Spacing
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import PromptError

TABLE = torch.randn(50, 6)
METAWORLD = Spacing({"hand_position": 0.01}, METAWORLD_OBSERVATION_LAYOUT["fields"])


def test_prompts_are_no_state_and_follow_to(bank):
    tables = PromptTables(TABLE, bank.shallow_copy())
    assert not tables.state_dict()
    tables.to(torch.float64)
    assert tables.text.dtype == tables.trajectories.prompts["action"].dtype == torch.float64
    assert tables.trajectories.prompts["mask"].dtype == torch.bool
    assert tables.trajectories.task_id.dtype == torch.int64
    assert bank.prompts["action"].dtype == TABLE.dtype == torch.float32
    assert tables.follow(torch.zeros(1)).text.dtype == torch.float32


def test_tasks_are_those_of_the_trajectories(bank):
    assert PromptTables(trajectories=bank).task_ids == set(bank.task_id.tolist())
    assert PromptTables(TABLE).task_ids == set()


def test_a_change_is_made_to_the_trajectories_and_leaves_the_texts(bank):
    changed = PromptTables(TABLE, bank).map_trajectories(lambda each: each.first(1).truncate(0.5))
    expected = bank.first(1).truncate(0.5)
    assert changed.text is TABLE
    assert (changed.trajectories.prompts == expected.prompts).all()
    assert torch.equal(changed.trajectories.task_id, expected.task_id)
    only_texts = PromptTables(TABLE).map_trajectories(TrajectoryPromptBank.concatenated)
    assert only_texts.trajectories is None


def test_what_is_no_table_is_refused(dataset):
    with pytest.raises(PromptError, match=r"the text table is \[6\]: give embeddings \[T, D\]"):
        PromptTables(TABLE[0])
    with pytest.raises(PromptError, match="the text table is str"):
        PromptTables("open the door")
    with pytest.raises(PromptError, match="the trajectories are a list: give a"):
        PromptTables(trajectories=[dataset.trajectory(0)])


def test_the_bank_holds_successful_trajectories_of_the_data(dataset, bank):
    assert len(bank) == 6
    assert bank.length == 16
    for row in range(len(bank)):
        source = dataset.trajectory(int(bank.trajectory_id[row]))
        assert source["task_id"][0].item() == bank.task_id[row].item()
        assert torch.equal(bank.prompts["observation"][row, 0], source["observation"][0])


def test_support_trajectories_belong_to_no_training_trajectory(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 8, trained_on=False).first(1)
    assert bank.trajectory_id.tolist() == [-1, -1]
    both = TrajectoryPromptBank.concatenate([bank, bank])
    assert len(both) == 4


def test_a_task_without_success_is_named(dataset):
    transitions = dataset.transitions.clone()
    transitions["next", "success"].fill_(False)
    failed = TrajectoryDataset(dataset.manifest, transitions)
    with pytest.raises(PromptError, match="reach-v3: no successful trajectory"):
        TrajectoryPromptBank.from_dataset(failed, 8)


def test_a_prompt_needs_two_steps(dataset):
    with pytest.raises(PromptError, match="prompt length is 1"):
        TrajectoryPromptBank.from_dataset(dataset, 1)


def test_a_bank_can_begin_with_another_of_each_tasks_prompts(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 8)
    second = bank.from_number(1)
    for task in bank.task_id.unique().tolist():
        mine, first, *rest = bank.trajectory_id[bank.rows_of(task)].tolist()
        assert second.trajectory_id[second.rows_of(task)].tolist() == [first, *rest, mine]
    assert torch.equal(bank.from_number(4).trajectory_id, second.trajectory_id)  # of three
    assert torch.equal(bank.from_number(0).trajectory_id, bank.trajectory_id)


def test_concatenated_demonstrations_as_recorded_have_their_own_ends(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 64, spacing=METAWORLD, recorded=True)
    some = bank.first(2)
    joined = some.concatenated().recorded().prompts[0]
    lengths = some.recorded().prompts["mask"].sum(-1)[:2].tolist()
    assert joined["start"].tolist() == [0] * 64 + [64] * 64
    assert joined["end"].tolist() == [lengths[0] - 1] * 64 + [64 + lengths[1] - 1] * 64


def test_the_first_part_is_that_of_the_recording_too(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 64, spacing=METAWORLD, recorded=True)
    whole, half = (b.recorded().prompts["mask"].sum(-1) for b in (bank, bank.truncate(0.5)))
    assert torch.equal(half, (whole / 2).ceil().long())
