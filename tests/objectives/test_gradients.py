"""Which term trains which network, and what reaches the prompt encoder."""

from __future__ import annotations

import pytest
import torch

from llmdpd_torchrl.modules import DiffusionActor
from llmdpd_torchrl.objectives import (
    GUIDANCE_MODES,
    LLMDPDLoss,
)
from llmdpd_torchrl.utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, TEXT, EMBED, BATCH = 3, 2, 6, 5, 7


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_each_term_trains_its_own_networks(make_loss, make_data, grads, touched, guidance):
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


def test_target_networks_carry_no_gradient(make_loss, make_data, run):
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
def test_the_prompts_gradient_takes_the_stated_routes(
    make_loss, make_data, grads, routes, diffusion, guidance, qvalue
):
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


def test_raising_q_never_changes_what_the_critics_are_told(make_networks, make_data, touched):
    # A policy that ignores z leaves the critics' input as L_r's only path to the encoder.
    prompt, _, critics = make_networks()
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    routes = ("diffusion", "qvalue", "guidance")
    loss = LLMDPDLoss(prompt, actor, critics, prompt_gradient=routes)
    loss.actor_loss(make_data())[0].backward()
    assert not touched(loss, "prompt_network")
    assert touched(loss, "actor_network")


def test_one_step_guidance_routes_with_diffusion_or_says_so(make_loss, make_ql):
    loss = make_loss(guidance="one_step")
    assert loss.prompt_gradient == {"diffusion", "qvalue", "guidance"}
    with pytest.raises(ConfigError, match="share one forward pass"):
        make_loss(guidance="one_step", prompt_gradient=("diffusion", "qvalue"))
    make_ql(guidance="one_step", prompt_gradient=("diffusion", "qvalue"))  # there is no z


def test_one_step_guidance_runs_the_denoiser_once(make_networks, make_data):
    prompt, actor, critics = make_networks()
    calls = []
    actor.module.score_network.register_forward_hook(lambda *_: calls.append(1))
    LLMDPDLoss(prompt, actor, critics, guidance="one_step").actor_loss(make_data())
    assert len(calls) == 1


@pytest.mark.parametrize("normalization", ["cross", "own"])
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_the_normaliser_is_a_constant_to_the_gradient(
    make_loss, make_data, run, grads, guidance, normalization
):
    def guidance_gradient(normalization: str):
        loss = make_loss(guidance=guidance, q_normalization=normalization)
        out = run(loss, make_data())
        out["loss_actor"].backward()
        plain = make_loss(guidance=guidance, lmbda=0.0)
        run(plain, make_data())["loss_actor"].backward()
        pairs = zip(grads(loss, "actor_network"), grads(plain, "actor_network"), strict=True)
        return out["guidance"], torch.cat([(a - b).flatten() for a, b in pairs])

    merit, unscaled = guidance_gradient("none")
    normalised, scaled = guidance_gradient(normalization)
    scale = merit / normalised
    assert scale > 0
    torch.testing.assert_close(scaled * scale, unscaled, rtol=1e-3, atol=1e-6)
