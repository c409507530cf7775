"""The loss as a TorchRL loss: the whole and its parts, λ, and the traps of loss modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.objectives import DiffusionBCLoss

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import (
    GUIDANCE_MODES,
    DiffusionQLLoss,
    LLMDPDLoss,
)
from llmdpd_torchrl.utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, BATCH = 3, 2, 7


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_the_parts_add_up_to_the_last_digit(make_loss, make_data, run, guidance):
    loss = make_loss(guidance=guidance, lmbda=0.37)
    out = run(loss, make_data())
    assert torch.equal(out["loss_actor"], out["bc"] - out["lmbda"] * out["guidance"])
    assert out["guidance"] != 0


def test_a_trainer_that_sums_what_starts_with_loss_sums_two_terms(
    out_keys, make_loss, make_data, run
):
    out = run(make_loss(), make_data())
    assert sorted(key for key in out.keys() if key.startswith("loss")) == [  # noqa: SIM118
        "loss_actor",
        "loss_qvalue",
    ]
    assert set(out.keys()) == set(out_keys)
    assert all(not out[key].requires_grad for key in set(out.keys()) if key[:4] != "loss")


def test_terms_alone_give_what_the_whole_reports(make_loss, make_data, run):
    loss, data = make_loss(), make_data()
    out = run(loss, data)
    torch.manual_seed(2)
    actor, actor_metadata = loss.actor_loss(data)
    qvalue, qvalue_metadata = loss.qvalue_loss(data)
    torch.manual_seed(2)
    diffusion, _ = loss.diffusion_loss(data)
    assert torch.equal(actor, out["loss_actor"])
    assert torch.equal(qvalue, out["loss_qvalue"])
    assert torch.equal(diffusion, out["bc"])
    assert torch.equal(actor_metadata["guidance"], out["guidance"])
    assert torch.equal(qvalue_metadata["td_error"], data["td_error"])


def test_the_prompt_is_encoded_once_per_forward(make_loss, make_data):
    loss, data = make_loss(), make_data()
    calls = []
    loss.prompt_network.module.register_forward_hook(lambda *_: calls.append(1))
    loss(data)
    assert len(calls) == 1


def test_the_input_gains_the_priority_and_nothing_else(make_loss, make_data):
    loss, data = make_loss(), make_data()
    before = data.clone()
    loss(data)
    priority = data.pop("td_error")
    assert priority.shape == (BATCH,)
    assert not priority.requires_grad
    assert (data == before).all()
    assert set(data.keys(True, True)) == set(before.keys(True, True))


def test_a_prompt_that_is_in_the_data_needs_no_network(out_keys, make_networks, make_data, run):
    prompt, actor, critics = make_networks()
    loss, bare = LLMDPDLoss(prompt, actor, critics), LLMDPDLoss(None, actor, critics)
    data = make_data()
    embedded = prompt(data.clone()).detach().exclude(("prompt", "text"))
    assert "prompt_embedding" in bare.in_keys
    assert ("next", "prompt_embedding") not in bare.in_keys
    whole, other = run(loss, data), run(bare, embedded)
    for key in out_keys:  # to the last bit but for a mean: mish takes another path without gradient
        torch.testing.assert_close(whole[key], other[key], rtol=1e-6, atol=1e-8)


def test_diffusion_ql_is_the_prompt_free_case(make_ql, make_data, run):
    loss = make_ql()
    assert loss.prompt_network is None
    assert loss.in_keys == [
        "action",
        "observation",
        ("next", "observation"),
        ("next", "reward"),
        ("next", "done"),
        ("next", "terminated"),
    ]
    out = run(loss, make_data())
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert all(p.grad is not None for p in loss.parameters())


# ---------------------------------------------------------------------- lambda


def test_lambda_zero_is_behaviour_cloning_bit_for_bit(make_data):
    torch.manual_seed(0)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16, 16))
    cloning = DiffusionBCLoss(copy.deepcopy(actor))
    ql = DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT, hidden=(16, 16)), lmbda=0.0)
    optimizers = [
        torch.optim.Adam(x.actor_network_params.parameters(), 1e-2) for x in (cloning, ql)
    ]

    def train(term, optimizer) -> list[float]:
        torch.manual_seed(5)
        values = []
        for step in range(20):  # one seed for all steps: the streams must stay together
            value = term(make_data(13, seed=step))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        return values

    reference = train(lambda data: cloning(data)["loss_diffusion_bc"], optimizers[0])
    assert train(lambda data: ql.actor_loss(data)[0], optimizers[1]) == reference
    expected, trained = cloning.actor_network_params, ql.actor_network_params
    assert all(torch.equal(expected.get(key), value) for key, value in trained.items(True, True))


def test_lambda_zero_skips_the_critics_and_the_chain(make_networks, make_data):
    prompt, actor, critics = make_networks()
    calls = []
    for module in (actor.module.score_network, critics[0].module):
        module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    loss = LLMDPDLoss(prompt, actor, critics, lmbda=0.0)
    _, metadata = loss.actor_loss(make_data())
    assert calls == ["MLPDenoiser"]
    assert metadata["guidance"] == 0


def test_guidance_does_not_change_the_draws_of_diffusion(make_loss, make_data, run):
    plain, guided = run(make_loss(lmbda=0.0), make_data()), run(make_loss(lmbda=1.0), make_data())
    assert torch.equal(plain["bc"], guided["bc"])


def _assign(loss):
    loss.lmbda = 0.5


def _replace(loss):
    loss.lmbda = torch.tensor(0.5)


def _load(loss):
    loss.load_state_dict({**loss.state_dict(), "lmbda": torch.tensor(0.5)})


@pytest.mark.parametrize("schedule", [_assign, _replace, _load])
def test_lambda_can_be_scheduled_away_from_zero_and_back(make_loss, make_data, run, schedule):
    loss = make_loss(lmbda=0.0)
    assert run(loss, make_data())["guidance"] == 0
    schedule(loss)
    out = run(loss, make_data())
    assert out["lmbda"] == 0.5
    assert torch.equal(out["loss_actor"], out["bc"] - 0.5 * out["guidance"])
    assert out["guidance"] != 0
    loss.lmbda = 0.0
    out = run(loss, make_data())
    assert torch.equal(out["loss_actor"], out["bc"])


# ---------------------------------------------------------------------- TorchRL's traps


def test_the_critics_given_are_the_critics_trained(make_networks):
    prompt, actor, critics = make_networks()
    before = [copy.deepcopy(critic.state_dict()) for critic in critics]
    loss = LLMDPDLoss(prompt, actor, critics)
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        for index, state in enumerate(before):
            for name, value in state.items():
                assert torch.equal(params.get(tuple(name.split(".")))[index], value)
    with pytest.raises(ConfigError, match="list of two critics"):
        LLMDPDLoss(prompt, actor, critics[0])


def test_rows_with_equal_observations_get_different_next_actions(make_ql, make_data):
    loss = make_ql()
    data = make_data(64)
    data["next", "observation"] = torch.zeros(64, OBS)
    data["next", "reward"] = torch.zeros(64, 1)
    data["observation"], data["action"] = torch.zeros(64, OBS), torch.zeros(64, ACT)
    loss(data)
    assert data["td_error"].unique().numel() > 32


def test_terms_sample_at_random_whatever_the_caller_set(make_networks, make_data):
    seen = []
    prompt, actor, critics = make_networks()
    actor.module.score_network.register_forward_hook(lambda *_: seen.append(exploration_type()))
    loss = LLMDPDLoss(prompt, actor, critics)
    for term in (loss, loss.actor_loss, loss.qvalue_loss, loss.diffusion_loss):
        term(make_data())
    assert set(seen) == {ExplorationType.RANDOM}


def test_no_attribute_was_mistaken_for_a_loss():
    # TorchRL wraps every public class attribute that ends so.
    assert {name for name in dir(LLMDPDLoss) if name[0] != "_" and name.endswith("loss")} == {
        "diffusion_loss",
        "actor_loss",
        "qvalue_loss",
    }


def test_truncated_rows_bootstrap_and_terminated_ones_do_not(make_loss, make_data):
    loss, data = make_loss(), make_data()
    loss.make_value_estimator(gamma=0.9)

    def target(**flags):
        changed = data.clone()
        for name, value in flags.items():
            changed["next", name] = torch.full((BATCH, 1), value)
        torch.manual_seed(0)
        return loss.qvalue_loss(changed)[1]["target_value"]

    running = target(done=False, terminated=False)
    assert torch.equal(target(done=True, terminated=False), running)
    ended = target(done=True, terminated=True)
    torch.testing.assert_close(ended, data["next", "reward"].mean())
    assert not torch.allclose(running, ended)
