"""The contrastive loss between text and trajectory, by loops and in the whole objective."""

import math

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.modules import (
    DiffusionActor,
    ObservationFeatures,
    PromptEncoder,
    PromptNetwork,
    TextHead,
    TrajectoryEncoder,
    make_qvalue_networks,
)
from llmdpd_torchrl.objectives import LLMDPDLoss, alignment_loss
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError

TASKS = 4


def by_hand(text, trajectory, task, present, temperature):
    rows = [i for i in range(len(task)) if present[i]]

    def s(a, b):
        return math.exp(torch.cosine_similarity(a, b, dim=0).item() / temperature)

    total = 0.0
    for i in rows:
        mine = [j for j in rows if task[j] == task[i]]
        forth = sum(s(text[i], trajectory[j]) for j in mine) / sum(
            s(text[i], trajectory[j]) for j in rows
        )
        back = sum(s(text[j], trajectory[i]) for j in mine) / sum(
            s(text[j], trajectory[i]) for j in rows
        )
        total -= (math.log(forth) + math.log(back)) / 2
    return total / len(rows)


def test_the_formula_by_loops():
    text, trajectory = torch.randn(2, 9, 5).unbind(0)
    task = torch.randint(3, (9,))
    present = torch.tensor([True, True, False] * 3)
    value = alignment_loss(text, trajectory, task, present, temperature=0.3)
    assert value.item() == pytest.approx(by_hand(text, trajectory, task, present, 0.3), rel=1e-4)


def test_rows_without_a_prompt_take_no_part():
    text, trajectory = torch.randn(2, 6, 5).unbind(0)
    text.requires_grad_()
    task, nobody = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    value = alignment_loss(text, trajectory, task, nobody)
    value.backward()
    assert value.item() == 0.0
    assert (text.grad == 0).all()
    text.grad = None
    present = torch.tensor([True] * 4 + [False] * 2)
    alignment_loss(text, trajectory, task, present).backward()
    assert (text.grad[4:] == 0).all()
    assert (text.grad[:4] != 0).any(-1).all()


def make_loss(text_features=6, trajectory_features=6, **options):
    torch.manual_seed(0)
    table = torch.randn(TASKS, 10)
    prompts = TensorDict(
        {
            "observation": torch.randn(2 * TASKS, 5, 3),
            "action": torch.rand(2 * TASKS, 5, 2),
            "reward": torch.rand(2 * TASKS, 5, 1),
            "mask": torch.ones(2 * TASKS, 5, dtype=torch.bool),
        },
        [2 * TASKS, 5],
    )
    bank = TrajectoryPromptBank(prompts, torch.arange(TASKS).repeat(2), torch.arange(2 * TASKS))
    observation = ObservationFeatures({"state": (0, 3)}, keep=["state"])
    encoder = PromptEncoder(
        TextHead(table, text_features, hidden=16),
        TrajectoryEncoder(
            observation, 2, 5, features=trajectory_features, width=8, layers=1, heads=2
        ),
    )
    width = text_features + trajectory_features
    return LLMDPDLoss(
        PromptNetwork(encoder, PromptTables(table, bank)),
        DiffusionActor(2, 3 + width, hidden=(8,)),
        make_qvalue_networks(3, 2, width, hidden=(8,)),
        **options,
    )


def batch(count=32):
    task = torch.randint(TASKS, (count, 1))
    absent = torch.rand(count, 1) < 0.2
    return TensorDict(
        {
            "observation": torch.randn(count, 3),
            "action": torch.rand(count, 2) * 2 - 1,
            "prompt": {
                "text_index": task.masked_fill(absent, -1),
                "trajectory_index": task + TASKS * torch.randint(2, (count, 1)),
            },
            "next": {
                "observation": torch.randn(count, 3),
                "reward": torch.randn(count, 1),
                "done": torch.zeros(count, 1, dtype=torch.bool),
                "terminated": torch.zeros(count, 1, dtype=torch.bool),
            },
        },
        [count],
    )


def test_it_is_added_to_the_actors_loss_and_reported():
    plain, aligned = make_loss(lmbda=0.0), make_loss(lmbda=0.0, alignment=0.5)
    data = batch()
    torch.manual_seed(1)
    before = plain(data.clone())
    torch.manual_seed(1)
    after = aligned(data.clone())
    assert "alignment" not in before.keys()  # noqa: SIM118
    assert after["alignment"] > 0
    assert not after["alignment"].requires_grad
    torch.testing.assert_close(after["loss_actor"], before["loss_actor"] + 0.5 * after["alignment"])
    assert aligned.out_keys == [*plain.out_keys, "alignment"]


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_it_is_a_mean_whatever_the_reduction(reduction):
    options = {"lmbda": 0.0, "reduction": reduction}
    plain, aligned = make_loss(**options), make_loss(**options, alignment=0.5)
    data = batch()
    torch.manual_seed(1)
    before = plain(data.clone())
    torch.manual_seed(1)
    after = aligned(data.clone())
    assert after["alignment"].ndim == 0
    torch.testing.assert_close(after["loss_actor"], before["loss_actor"] + 0.5 * after["alignment"])


def test_training_brings_text_and_trajectory_of_a_task_together():
    loss = make_loss(lmbda=0.0, alignment=1.0)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], 3e-3)
    values = []
    for _ in range(150):
        out = loss(batch())
        out["loss_actor"].backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(out["alignment"].item())
    assert sum(values[-10:]) < 0.2 * sum(values[:10])


def test_what_can_not_be_aligned_is_refused():
    with pytest.raises(ConfigError, match=r"text features \(6\) with trajectory features \(4\)"):
        make_loss(trajectory_features=4, alignment=1.0)
    actor = DiffusionActor(2, 3, hidden=(8,), in_keys=["observation"])
    with pytest.raises(ConfigError, match="both a text and a trajectory part"):
        LLMDPDLoss(None, actor, make_qvalue_networks(3, 2, hidden=(8,)), alignment=1.0)
    with pytest.raises(ConfigError, match="alignment"):
        make_loss(alignment=-1.0)
