"""What the loss reads and writes, under which names, with and without TensorDicts."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from llmdpd_torchrl.modules import DiffusionActor
from llmdpd_torchrl.objectives import (
    LLMDPDLoss,
)
from llmdpd_torchrl.utils.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, TEXT, BATCH = 3, 2, 6, 7


def test_renamed_and_nested_keys(out_keys, make_networks, make_data, run):
    names = {
        "observation": ("agent", "state"),
        "action": ("agent", "act"),
        "prompt_embedding": ("agent", "z"),
        ("prompt", "text"): ("task", "words"),
        "state_action_value": ("agent", "q"),
        ("next", "observation"): ("next", "agent", "state"),
        ("next", "reward"): ("next", "gain"),
        ("next", "done"): ("next", "stop"),
        ("next", "terminated"): ("next", "end"),
    }
    prompt, actor, critics = make_networks()
    reference, data = LLMDPDLoss(prompt, actor, critics), make_data()
    renamed_prompt = TensorDictModule(
        prompt.module, in_keys=[names["prompt", "text"]], out_keys=[names["prompt_embedding"]]
    )
    renamed_actor = DiffusionActor(
        ACT,
        score_network=actor.module.score_network,
        in_keys=[names["observation"], names["prompt_embedding"]],
        out_keys=[names["action"]],
    )
    renamed_critics = [
        TensorDictModule(
            critic.module,
            in_keys=[names[key] for key in critic.in_keys],
            out_keys=[names["state_action_value"]],
        )
        for critic in critics
    ]
    loss = LLMDPDLoss(renamed_prompt, renamed_actor, renamed_critics)
    loss.make_value_estimator(gamma=0.99)
    loss.set_keys(
        action=("agent", "act"),
        prompt="task",
        prompt_embedding=("agent", "z"),
        state_action_value=("agent", "q"),
        priority=("agent", "priority"),
        reward="gain",
        done="stop",
        terminated="end",
    )
    renamed = TensorDict({names[key]: data[key] for key in data.keys(True, True)}, [BATCH])
    assert set(loss.in_keys) == set(renamed.keys(True, True))
    out, expected = run(loss, renamed), run(reference, data)
    for key in out_keys:
        assert torch.equal(out[key], expected[key])
    assert torch.equal(renamed["agent", "priority"], data["td_error"])


def test_set_keys_refuses_what_it_does_not_know(make_loss):
    with pytest.raises(ValueError, match="is not an accepted tensordict key"):
        make_loss().set_keys(value="v")


def test_prompt_entries_are_read_at_the_root_for_both_states(make_networks, make_data, run):
    prompt, _, critics = make_networks()
    actor = DiffusionActor(
        ACT, OBS + TEXT, in_keys=["observation", ("prompt", "text")], hidden=(16,)
    )
    loss = LLMDPDLoss(prompt, actor, critics)
    assert not [key for key in loss.in_keys if key[0] == "next" and "prompt" in key]
    assert run(loss, make_data())["loss_actor"].isfinite()


def test_dispatch_without_a_tensordict(out_keys, make_loss, make_data, run):
    loss, data = make_loss(), make_data()
    expected = run(loss, data.clone())
    keywords = {"_".join(key) if isinstance(key, tuple) else key: data[key] for key in loss.in_keys}
    torch.manual_seed(2)
    outputs = loss(**keywords)
    for key, value in zip(out_keys, outputs, strict=True):
        assert torch.equal(value, expected[key])
    loss.select_out_keys("loss_actor", "loss_qvalue")
    torch.manual_seed(2)
    actor, qvalue = loss(**keywords)
    assert torch.equal(actor, expected["loss_actor"])
    assert torch.equal(qvalue, expected["loss_qvalue"])


def test_the_actor_imitates_the_expert_while_the_critics_read_what_was_executed(
    make_loss, make_data, run
):
    loss, data = make_loss(lmbda=0.0), make_data()
    assert "expert_action" not in loss.in_keys
    executed, wanted = run(loss, data.clone()), -data["action"]
    cloned = run(loss, data.clone().set("action", wanted))["loss_actor"]
    loss.set_keys(expert_action="expert_action")
    assert "expert_action" in loss.in_keys
    labelled = run(loss, data.clone().set("expert_action", wanted))
    assert torch.equal(labelled["loss_actor"], cloned)
    assert not torch.equal(cloned, executed["loss_actor"])
    assert torch.equal(labelled["q_value"], executed["q_value"])
    with pytest.raises(DataError, match="the batch has no 'expert_action'"):
        loss(data)
    with pytest.raises(DataError, match=r"'expert_action' has shape \[7, 3\]: use \[7, 2\]"):
        loss(data.set("expert_action", torch.zeros(BATCH, 3)))
    loss.set_keys(expert_action=None)
    assert torch.equal(run(loss, data)["loss_actor"], executed["loss_actor"])
