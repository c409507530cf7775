import pytest
import torch

from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import PromptError

TABLE = torch.randn(50, 6)


def test_prompts_are_no_state_and_follow_to(bank):
    tables = PromptTables(TABLE, bank.shallow_copy())
    assert not tables.state_dict()
    tables.to(torch.float64)
    assert tables.text.dtype == tables.trajectories.prompts["action"].dtype == torch.float64
    assert tables.trajectories.prompts["mask"].dtype == torch.bool
    assert tables.trajectories.task_id.dtype == torch.int64
    assert bank.prompts["action"].dtype == TABLE.dtype == torch.float32
    assert tables.follow(torch.zeros(1)).text.dtype == torch.float32


def test_what_is_missing_is_filled(bank):
    filled = PromptTables(trajectories=bank).filled(6, 16, 39, 4)
    assert filled.text.shape == (1, 6)
    assert filled.trajectories is bank
    assert PromptTables(TABLE).filled(6, 16, 39, 4).task_ids == {-1}
    assert PromptTables(TABLE).task_ids == set()


def test_changes_are_those_of_the_bank_and_leave_the_texts(bank):
    tables = PromptTables(TABLE, bank)
    for changed, expected in (
        (tables.first(1), bank.first(1)),
        (tables.truncate(0.5), bank.truncate(0.5)),
        (tables.concatenated(), bank.concatenated()),
    ):
        assert changed.text is TABLE
        assert (changed.trajectories.prompts == expected.prompts).all()
        assert torch.equal(changed.trajectories.task_id, expected.task_id)
    assert PromptTables(TABLE).first(1).trajectories is None


def test_what_is_no_table_is_refused(dataset):
    with pytest.raises(PromptError, match=r"the text table is \[6\]: give embeddings \[T, D\]"):
        PromptTables(TABLE[0])
    with pytest.raises(PromptError, match="the text table is str"):
        PromptTables("open the door")
    with pytest.raises(PromptError, match="the trajectories are a list: give a"):
        PromptTables(trajectories=[dataset.trajectory(0)])
