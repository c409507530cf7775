"""The loss as a TorchRL loss: keys, dispatch, reductions, gradients, state, schedules."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.objectives import DiffusionBCLoss, ValueEstimators
from torchrl.objectives.value import TD0Estimator

from llmdpd_torchrl.errors import ConfigError, DataError
from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import (
    GUIDANCE_MODES,
    Q_NORMALIZATIONS,
    DiffusionQLLoss,
    LLMDPDLoss,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OUT_KEYS = [
    "loss_actor",
    "loss_qvalue",
    "bc",
    "guidance",
    "lmbda",
    "q_value",
    "target_value",
]
OBS, ACT, TEXT, EMBED, BATCH = 3, 2, 6, 5, 7
SETTINGS = list(itertools.product(GUIDANCE_MODES, Q_NORMALIZATIONS))


class CountingEncoder(nn.Linear):
    calls = 0

    def forward(self, text):
        type(self).calls += 1
        return super().forward(text)


def make_networks(seed: int = 0):
    torch.manual_seed(seed)
    prompt = TensorDictModule(
        CountingEncoder(TEXT, EMBED), in_keys=[("prompt", "text")], out_keys=["prompt_embedding"]
    )
    actor = DiffusionActor(ACT, OBS + EMBED, hidden=(16, 16))
    critics = make_qvalue_networks(OBS, ACT, EMBED, hidden=(16, 16))
    return prompt, actor, critics


def make_loss(seed: int = 0, **kwargs) -> LLMDPDLoss:
    return LLMDPDLoss(*make_networks(seed), **kwargs)


def make_ql(seed: int = 0, **kwargs) -> DiffusionQLLoss:
    torch.manual_seed(seed)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16, 16))
    return DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT, hidden=(16, 16)), **kwargs)


def make_data(*batch: int, seed: int = 1) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    batch = batch or (BATCH,)

    def randn(width: int) -> torch.Tensor:
        return torch.randn(*batch, width, generator=generator)

    return TensorDict(
        {
            "observation": randn(OBS),
            "action": randn(ACT).clamp(-1, 1),
            ("prompt", "text"): randn(TEXT),
            ("next", "observation"): randn(OBS),
            ("next", "reward"): randn(1),
            ("next", "done"): torch.zeros(*batch, 1, dtype=torch.bool),
            ("next", "terminated"): torch.zeros(*batch, 1, dtype=torch.bool),
        },
        batch,
    )


def run(loss, data, seed: int = 2):
    torch.manual_seed(seed)
    return loss(data)


def grads(loss, name: str) -> list[torch.Tensor | None]:
    return [p.grad for p in getattr(loss, f"{name}_params").parameters()]


def touched(loss, name: str) -> bool:
    return any(grad is not None and grad.abs().sum() > 0 for grad in grads(loss, name))


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_each_term_trains_its_own_networks(guidance):
    expected = {
        "diffusion_loss": {"prompt_network", "actor_network"},
        "actor_loss": {"prompt_network", "actor_network"},
        "qvalue_loss": {"prompt_network", "qvalue_network"},
    }
    for term, networks in expected.items():
        loss = make_loss(guidance=guidance)
        torch.manual_seed(0)
        getattr(loss, term)(make_data())[0].backward()
        for name in ("prompt_network", "actor_network", "qvalue_network"):
            assert touched(loss, name) == (name in networks), (term, name)
            if name not in networks:
                assert all(grad is None for grad in grads(loss, name))


def test_target_networks_carry_no_gradient():
    loss = make_loss(max_q_backup=3)
    out = run(loss, make_data())
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    for name in ("target_actor_network_params", "target_qvalue_network_params"):
        values = getattr(loss, name).values(True, True)
        assert all(not value.requires_grad and value.grad is None for value in values)
    named = dict(loss.named_parameters())
    assert not any(name.startswith("target") for name in named)


@pytest.mark.parametrize(
    ("routes", "diffusion", "guidance", "qvalue"),
    [
        (None, True, False, True),
        ((), False, False, False),
        (("diffusion",), True, False, False),
        (("qvalue",), False, False, True),
        (("guidance",), False, True, False),
        (("diffusion", "guidance", "qvalue"), True, True, True),
    ],
)
def test_the_prompts_gradient_takes_the_stated_routes(routes, diffusion, guidance, qvalue):
    def prompt_gradient(term: str, lmbda: float):
        loss = make_loss(prompt_gradient=routes, lmbda=lmbda)
        torch.manual_seed(3)
        value, _ = getattr(loss, term)(make_data())
        value.backward()
        (weight, *_) = grads(loss, "prompt_network")
        return torch.zeros(EMBED, TEXT) if weight is None else weight

    only_diffusion = prompt_gradient("diffusion_loss", 0.0)
    with_guidance = prompt_gradient("actor_loss", 1.0)
    assert bool(only_diffusion.abs().sum() > 0) == diffusion
    assert bool((with_guidance - only_diffusion).abs().sum() > 1e-6) == guidance
    assert bool(prompt_gradient("qvalue_loss", 1.0).abs().sum() > 0) == qvalue


def test_raising_q_never_changes_what_the_critics_are_told():
    # A policy that ignores z leaves the critics' input as L_r's only path to the encoder.
    prompt, _, critics = make_networks()
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    routes = ("diffusion", "qvalue", "guidance")
    loss = LLMDPDLoss(prompt, actor, critics, prompt_gradient=routes)
    loss.actor_loss(make_data())[0].backward()
    assert not touched(loss, "prompt_network")
    assert touched(loss, "actor_network")


def test_one_step_guidance_routes_with_diffusion_or_says_so():
    loss = make_loss(guidance="one_step")
    assert loss.prompt_gradient == {"diffusion", "qvalue", "guidance"}
    with pytest.raises(ConfigError, match="share one forward pass"):
        make_loss(guidance="one_step", prompt_gradient=("diffusion", "qvalue"))
    make_ql(guidance="one_step", prompt_gradient=("diffusion", "qvalue"))  # there is no z


def test_one_step_guidance_runs_the_denoiser_once():
    prompt, actor, critics = make_networks()
    calls = []
    actor.module.score_network.register_forward_hook(lambda *_: calls.append(1))
    LLMDPDLoss(prompt, actor, critics, guidance="one_step").actor_loss(make_data())
    assert len(calls) == 1


# ---------------------------------------------------------------------- the whole and its parts


@pytest.mark.parametrize(("guidance", "normalization"), SETTINGS)
def test_the_parts_make_the_whole_to_the_last_digit(guidance, normalization):
    loss = make_loss(guidance=guidance, q_normalization=normalization, lmbda=0.37)
    out = run(loss, make_data())
    assert torch.equal(out["loss_actor"], out["bc"] - out["lmbda"] * out["guidance"])
    assert out["guidance"] != 0


def test_a_trainer_that_sums_what_starts_with_loss_sums_two_terms():
    out = run(make_loss(), make_data())
    assert sorted(key for key in out.keys() if key.startswith("loss")) == [  # noqa: SIM118
        "loss_actor",
        "loss_qvalue",
    ]
    assert set(out.keys()) == set(OUT_KEYS)
    assert all(not out[key].requires_grad for key in set(out.keys()) if key[:4] != "loss")


def test_terms_alone_give_what_the_whole_reports():
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


def test_the_prompt_is_encoded_once_per_forward():
    loss, data = make_loss(), make_data()
    CountingEncoder.calls = 0
    loss(data)
    assert CountingEncoder.calls == 1


def test_the_input_gains_the_priority_and_nothing_else():
    loss, data = make_loss(), make_data()
    before = data.clone()
    loss(data)
    priority = data.pop("td_error")
    assert priority.shape == (BATCH,)
    assert not priority.requires_grad
    assert (data == before).all()
    assert set(data.keys(True, True)) == set(before.keys(True, True))


def test_a_prompt_that_is_in_the_data_needs_no_network():
    prompt, actor, critics = make_networks()
    loss, bare = LLMDPDLoss(prompt, actor, critics), LLMDPDLoss(None, actor, critics)
    data = make_data()
    embedded = prompt(data.clone()).detach().exclude(("prompt", "text"))
    assert "prompt_embedding" in bare.in_keys
    assert ("next", "prompt_embedding") not in bare.in_keys
    whole, other = run(loss, data), run(bare, embedded)
    for key in OUT_KEYS:
        assert torch.equal(whole[key], other[key])


def test_diffusion_ql_is_the_prompt_free_case():
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


def test_lambda_zero_is_behaviour_cloning_bit_for_bit():
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


def test_lambda_zero_skips_the_critics_and_the_chain():
    prompt, actor, critics = make_networks()
    calls = []
    for module in (actor.module.score_network, critics[0].module):
        module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    loss = LLMDPDLoss(prompt, actor, critics, lmbda=0.0)
    _, metadata = loss.actor_loss(make_data())
    assert calls == ["MLPDenoiser"]
    assert metadata["guidance"] == 0


def test_guidance_does_not_change_the_draws_of_diffusion():
    plain, guided = run(make_loss(lmbda=0.0), make_data()), run(make_loss(lmbda=1.0), make_data())
    assert torch.equal(plain["bc"], guided["bc"])


def _assign(loss):
    loss.lmbda = 0.5


def _fill(loss):
    loss.lmbda.fill_(0.5)


def _replace(loss):
    loss.lmbda = torch.tensor(0.5)


def _load(loss):
    loss.load_state_dict(make_loss(lmbda=0.5).state_dict())


@pytest.mark.parametrize("schedule", [_assign, _fill, _replace, _load])
def test_lambda_can_be_scheduled_away_from_zero_and_back(schedule):
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


def test_the_critics_given_are_the_critics_trained():
    prompt, actor, critics = make_networks()
    before = [copy.deepcopy(critic.state_dict()) for critic in critics]
    loss = LLMDPDLoss(prompt, actor, critics)
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        for index, state in enumerate(before):
            for name, value in state.items():
                assert torch.equal(params.get(tuple(name.split(".")))[index], value)
    with pytest.raises(TypeError, match="list of critics"):
        LLMDPDLoss(prompt, actor, critics[0])


def test_rows_with_equal_observations_get_different_next_actions():
    loss = make_ql()
    data = make_data(64)
    data["next", "observation"] = torch.zeros(64, OBS)
    data["next", "reward"] = torch.zeros(64, 1)
    data["observation"], data["action"] = torch.zeros(64, OBS), torch.zeros(64, ACT)
    loss(data)
    assert data["td_error"].unique().numel() > 32


def test_terms_sample_at_random_whatever_the_caller_set():
    seen = []
    prompt, actor, critics = make_networks()
    actor.module.score_network.register_forward_hook(lambda *_: seen.append(exploration_type()))
    loss = LLMDPDLoss(prompt, actor, critics)
    for term in (loss, loss.actor_loss, loss.qvalue_loss, loss.diffusion_loss):
        term(make_data())
    assert set(seen) == {ExplorationType.RANDOM}


def test_no_attribute_was_mistaken_for_a_loss():
    # TorchRL wraps every public class attribute that ends so.
    assert {name for name in vars(LLMDPDLoss) if name.endswith("loss")} == {
        "diffusion_loss",
        "actor_loss",
        "qvalue_loss",
    }


def test_truncated_rows_bootstrap_and_terminated_ones_do_not():
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


# ---------------------------------------------------------------------- keys and dispatch


def test_renamed_and_nested_keys():
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
    for key in OUT_KEYS:
        assert torch.equal(out[key], expected[key])
    assert torch.equal(renamed["agent", "priority"], data["td_error"])


def test_set_keys_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="is not an accepted tensordict key"):
        make_loss().set_keys(value="v")


def test_prompt_entries_are_read_at_the_root_for_both_states():
    prompt, _, critics = make_networks()
    actor = DiffusionActor(
        ACT, OBS + TEXT, in_keys=["observation", ("prompt", "text")], hidden=(16,)
    )
    loss = LLMDPDLoss(prompt, actor, critics)
    assert not [key for key in loss.in_keys if key[0] == "next" and "prompt" in key]
    assert run(loss, make_data())["loss_actor"].isfinite()


def test_dispatch_without_a_tensordict():
    loss, data = make_loss(), make_data()
    expected = run(loss, data.clone())
    keywords = {"_".join(key) if isinstance(key, tuple) else key: data[key] for key in loss.in_keys}
    torch.manual_seed(2)
    outputs = loss(**keywords)
    for key, value in zip(OUT_KEYS, outputs, strict=True):
        assert torch.equal(value, expected[key])
    loss.select_out_keys("loss_actor", "loss_qvalue")
    torch.manual_seed(2)
    actor, qvalue = loss(**keywords)
    assert torch.equal(actor, expected["loss_actor"])
    assert torch.equal(qvalue, expected["loss_qvalue"])


def test_a_missing_key_is_named():
    with pytest.raises(DataError, match=r"no \('next', 'observation'\)"):
        make_loss()(make_data().exclude(("next", "observation")))


# ---------------------------------------------------------------------- reductions and batches


def test_reductions_agree():
    outs = {
        reduction: run(make_loss(reduction=reduction), make_data())
        for reduction in ("none", "mean", "sum")
    }
    for key in ("loss_actor", "loss_qvalue", "bc", "guidance"):
        rows = outs["none"][key]
        assert rows.shape == (BATCH,)
        torch.testing.assert_close(outs["mean"][key], rows.mean())
        torch.testing.assert_close(outs["sum"][key], rows.sum())


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_any_batch_shape(batch, guidance):
    data = make_data(*batch)
    out = run(make_loss(guidance=guidance, reduction="none", max_q_backup=3), data)
    assert out["loss_actor"].shape == out["loss_qvalue"].shape == batch
    assert data["td_error"].shape == batch


def test_priority_weights():
    data, weights = make_data(), torch.rand(BATCH)
    rows = run(make_loss(reduction="none"), data.clone())
    weighted = run(make_loss(), data.clone().set("priority_weight", weights))
    for key in ("loss_actor", "loss_qvalue", "bc", "guidance"):
        expected = (rows[key] * weights).sum() / weights.sum()
        torch.testing.assert_close(weighted[key], expected)
    ignored = run(
        make_loss(use_prioritized_weights=False), data.clone().set("priority_weight", weights)
    )
    torch.testing.assert_close(ignored["loss_qvalue"], rows["loss_qvalue"].mean())


def test_masked_rows_do_not_count():
    data = make_data()
    valid = torch.arange(BATCH) < 4
    rows = run(make_loss(reduction="none"), data.clone())
    masked = run(make_loss(), data.clone().set(("collector", "mask"), valid.unsqueeze(-1)))
    for key in ("loss_qvalue", "bc"):
        torch.testing.assert_close(masked[key], rows[key][valid].mean())


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_with_and_without_vmap(guidance):
    outs = [
        run(make_loss(guidance=guidance, deactivate_vmap=flag), make_data())
        for flag in (False, True)
    ]
    for key in OUT_KEYS:
        torch.testing.assert_close(outs[0][key], outs[1][key])


def test_n_step_returns_discount_by_their_length():
    loss, data = make_loss(), make_data()
    loss.make_value_estimator(gamma=0.5)
    data["next", "reward"] = torch.zeros(BATCH, 1)

    def target(steps: int | None):
        changed = data.clone()
        if steps is not None:
            changed["steps_to_next_obs"] = torch.full((BATCH, 1), steps)
        torch.manual_seed(0)
        return loss.qvalue_loss(changed)[1]["target_value"]

    torch.testing.assert_close(target(1), target(None))
    torch.testing.assert_close(target(3), target(1) * 0.25)


def test_value_estimators():
    loss = make_loss()
    for value_type in (ValueEstimators.GAE, ValueEstimators.VTrace):
        with pytest.raises(NotImplementedError, match="LLMDPDLoss"):
            loss.make_value_estimator(value_type)
    loss.make_value_estimator(TD0Estimator, gamma=0.9, value_network=None)
    assert run(loss, make_data())["loss_qvalue"].isfinite()
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.9, lmbda=0.95)
    assert run(loss, make_data(2, 5))["loss_qvalue"].isfinite()


def test_a_backup_over_more_actions_is_no_lower():
    one, many = (make_loss(max_q_backup=n) for n in (1, 30))
    zero = make_loss(max_q_backup=0)
    data = make_data(256)
    assert torch.equal(run(zero, data)["target_value"], run(one, data)["target_value"])
    assert run(many, data)["target_value"] > run(one, data)["target_value"]


def test_target_actions_may_take_fewer_steps():
    prompt, actor, critics = make_networks()
    steps = []
    actor.module.score_network.register_forward_hook(lambda *_: steps.append(1))
    LLMDPDLoss(prompt, actor, critics, target_sampling_steps=2).qvalue_loss(make_data())
    assert len(steps) == 2


# ---------------------------------------------------------------------- state, dtype, copies


def test_state_dict_round_trip():
    first, second = make_loss(0, lmbda=0.3), make_loss(9)
    data = make_data()
    assert not torch.equal(run(first, data)["loss_actor"], run(second, data)["loss_actor"])
    second.load_state_dict(first.state_dict())
    for key in OUT_KEYS:
        assert torch.equal(run(first, data)[key], run(second, data)[key])
    prefixes = {key.split(".")[0] for key in first.state_dict()}
    assert prefixes == {
        "lmbda",
        "_value_estimator",
        "prompt_network_params",
        "actor_network_params",
        "qvalue_network_params",
        "target_actor_network_params",
        "target_qvalue_network_params",
    }


def test_a_deep_copy_is_independent_and_equal():
    loss, data = make_loss(), make_data()
    copied = copy.deepcopy(loss)
    for key in OUT_KEYS:
        assert torch.equal(run(loss, data)[key], run(copied, data)[key])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in loss.actor_network_params.parameters() if p.ndim > 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_double_precision(when):
    networks = make_networks()
    if when == "before":
        networks = (networks[0].double(), networks[1].double(), [c.double() for c in networks[2]])
    loss = LLMDPDLoss(*networks)
    if when == "after":
        loss(make_data())  # fills the cache of detached critics, which the cast must empty
        loss.double()
    data = make_data().double()
    for key in ("done", "terminated"):
        data["next", key] = data["next", key].bool()
    out = run(loss, data)
    assert out["loss_actor"].dtype == out["loss_qvalue"].dtype == torch.float64
    (out["loss_actor"] + out["loss_qvalue"]).backward()


def test_reset_parameters_recursive():
    loss = make_ql()
    before = copy.deepcopy(loss.state_dict())
    torch.manual_seed(99)
    loss.reset_parameters_recursive()
    changed = [
        key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert {key.split(".")[0] for key in changed} == {
        "actor_network_params",
        "qvalue_network_params",
        "target_actor_network_params",
        "target_qvalue_network_params",
    }


# ---------------------------------------------------------------------- other actors, mistakes


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_torchrls_actor_trains_under_this_loss(guidance):
    torch.manual_seed(0)
    actor = TorchRLDiffusionActor(action_dim=ACT, obs_dim=OBS, num_steps=5)
    critics = make_qvalue_networks(OBS, ACT, hidden=(16,))
    loss = DiffusionQLLoss(actor, critics, guidance=guidance, max_q_backup=2)
    out = run(loss, make_data())
    assert out["guidance"] != 0
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_torchrls_actor_can_not_sample_with_fewer_steps():
    actor = TorchRLDiffusionActor(action_dim=ACT, obs_dim=OBS, num_steps=5)
    loss = DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT), target_sampling_steps=2)
    with pytest.raises(ConfigError, match="target_sampling_steps"):
        loss(make_data())


def test_other_actors_are_refused():
    actor = TensorDictModule(nn.Linear(OBS, ACT), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(TypeError, match="must be a DiffusionActor"):
        DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"guidance": "two_step"}, "'two_step'.*chain, one_step"),
        ({"q_normalization": "max"}, "'max'.*cross, own, none"),
        ({"prompt_gradient": ("critic",)}, "'critic'.*diffusion, qvalue, guidance"),
        ({"lmbda": -1.0}, "can not be negative"),
        ({"max_q_backup": -1}, "can not be negative"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        make_loss(**kwargs)


def test_one_critic_can_not_be_normalised_by_another():
    prompt, actor, critics = make_networks()
    with pytest.raises(ConfigError, match="needs two critics"):
        LLMDPDLoss(prompt, actor, critics[:1])
    loss = LLMDPDLoss(prompt, actor, critics[:1], q_normalization="own")
    assert run(loss, make_data())["guidance"].abs() <= 1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_it_compiles_into_one_graph(guidance):
    loss, data = make_loss(guidance=guidance, lmbda=0.5), make_data()
    loss(data.clone())
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.manual_seed(2)
    out, expected = compiled(data.clone()), run(loss, data.clone())
    for key in OUT_KEYS:
        torch.testing.assert_close(out[key], expected[key])
    (out["loss_actor"] + out["loss_qvalue"]).backward()
