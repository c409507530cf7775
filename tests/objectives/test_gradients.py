"""Which term trains which network, and what reaches the prompt encoder."""

from __future__ import annotations

import pytest
import torch

from llmdpd_torchrl.modules import DiffusionActor
from llmdpd_torchrl.objectives import GUIDANCE_MODES, LLMDPDLoss

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
    loss = make_loss()
    out = run(loss, make_data())
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    for name in ("target_actor_network_params", "target_qvalue_network_params"):
        values = getattr(loss, name).values(True, True)
        assert all(not value.requires_grad and value.grad is None for value in values)
    named = dict(loss.named_parameters())
    assert not any(name.startswith("target") for name in named)


@pytest.mark.parametrize(("guidance", "guided"), [("chain", False), ("one_step", True)])
def test_the_prompts_gradient_takes_the_stated_routes(
    make_loss, make_data, grads, guidance, guided
):
    def prompt_gradient(term: str, lmbda: float):
        loss = make_loss(guidance=guidance, lmbda=lmbda)
        torch.manual_seed(3)
        value, _ = getattr(loss, term)(make_data())
        value.backward()
        (weight, *_) = grads(loss, "prompt_network")
        return torch.zeros(EMBED, TEXT) if weight is None else weight

    only_diffusion = prompt_gradient("diffusion_loss", 0.0)
    with_guidance = prompt_gradient("actor_loss", 1.0)
    assert only_diffusion.abs().sum() > 0
    assert bool((with_guidance - only_diffusion).abs().sum() > 1e-6) == guided
    if not guided:
        assert torch.equal(with_guidance, only_diffusion)
    assert prompt_gradient("qvalue_loss", 1.0).abs().sum() > 0


def test_the_target_is_a_constant_to_the_prompts_gradient(make_loss, make_data, touched):
    loss = make_loss()
    with torch.no_grad():  # critics that ignore z, unlike their targets
        loss.qvalue_network_params["module", "mlp", "0", "weight"][..., -EMBED:] = 0.0
    loss.qvalue_loss(make_data())[0].backward()
    assert touched(loss, "qvalue_network")
    assert not touched(loss, "prompt_network")


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_guidance_never_trains_the_prompt_through_the_critics(
    make_networks, make_data, touched, guidance
):
    # A policy that ignores z leaves the critics' input as L_r's only path to the prompt network.
    prompt, _, critics = make_networks()
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    loss = LLMDPDLoss(prompt, actor, critics, guidance=guidance)
    loss.actor_loss(make_data())[0].backward()
    assert not touched(loss, "prompt_network")
    assert touched(loss, "actor_network")


def test_one_step_guidance_runs_the_denoiser_once(make_networks, make_data):
    prompt, actor, critics = make_networks()
    calls = []
    actor.module.score_network.register_forward_hook(lambda *_: calls.append(1))
    LLMDPDLoss(prompt, actor, critics, guidance="one_step").actor_loss(make_data())
    assert len(calls) == 1


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_the_normaliser_is_a_constant_to_the_gradient(make_networks, make_data, guidance):
    """Of two equal, positive critics the normalised value is 1, and yet its gradient is not 0."""
    prompt, actor, critics = make_networks()
    with torch.no_grad():
        critics[0].module.mlp[-1].bias += 10.0
    critics[1].load_state_dict(critics[0].state_dict())
    data = make_data()
    loss = LLMDPDLoss(prompt, actor, critics, guidance=guidance)
    torch.manual_seed(3)
    _, metadata = loss.actor_loss(data)
    torch.testing.assert_close(metadata["guidance"], torch.tensor(1.0))

    def gradient(term) -> torch.Tensor:
        loss.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        term().backward()
        return torch.cat([p.grad.flatten() for p in loss.actor_network_params.parameters()])

    guided = gradient(lambda: loss.diffusion_loss(data)[0] * 1) - gradient(
        lambda: loss.actor_loss(data)[0]
    )

    # The same by hand, on the same random numbers: the gradient of Q over the constant mean Q.
    process = actor.module
    torch.manual_seed(3)
    z = prompt(data.clone())["prompt_embedding"].detach()
    step = torch.randint(0, process.num_steps, (BATCH,))
    condition = process.condition(data["observation"], z)
    noisy, _ = process.add_noise(data["action"], step)
    with loss.actor_network_params.to_module(actor):
        action = (
            process.sample(condition)
            if guidance == "chain"
            else process.predict_clean(noisy, step, process.denoise(noisy, condition, step))
        )
        value = critics[0].module(data["observation"], action, z)
        parameters = list(loss.actor_network_params.parameters())
        expected = torch.autograd.grad(value.mean() / value.mean().detach(), parameters)
    expected = torch.cat([grad.flatten() for grad in expected])
    assert expected.abs().sum() > 0
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-6)
