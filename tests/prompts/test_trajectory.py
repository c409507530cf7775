import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank, cut_trajectory
from llmdpd_torchrl.utils.errors import PromptError


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
