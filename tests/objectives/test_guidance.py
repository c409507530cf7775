"""Ways in which critics guide an actor; the chain and one step are also asked of the loss."""

from __future__ import annotations

import pytest
import torch

from llmdpd_torchrl.baselines import get_algorithm
from llmdpd_torchrl.modules import (
    DiffusionActor,
    NetworkConfig,
    make_networks,
    make_qvalue_networks,
)
from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.objectives.guidance import DistilledGuidance, OneStepGuidance
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers import OfflineOptimizationStepper
from llmdpd_torchrl.utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT = 3, 2


def distilled(lmbda=1.0, weight=10.0):
    torch.manual_seed(0)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    network = make_mlp(OBS + ACT, (32,), ACT)
    critics = make_qvalue_networks(OBS, ACT, hidden=(16,))
    guidance = DistilledGuidance(network, weight)
    return DiffusionQLLoss(actor, critics, lmbda=lmbda, guidance=guidance), network


def test_a_guidance_is_given_by_name_or_as_an_object(make_ql, make_data, run):
    named, given = make_ql(guidance="one_step"), make_ql(guidance=OneStepGuidance())
    assert torch.equal(*(run(loss, make_data())["loss_actor"] for loss in (named, given)))


def test_critics_reach_the_one_step_network_and_not_the_diffusion(make_data, run):
    gradients = []
    for lmbda in (0.0, 1.0):
        loss, network = distilled(lmbda)
        out = run(loss, make_data())
        out["loss_actor"].backward()
        diffusion = [p.grad.clone() for p in loss.actor_network_params.parameters()]
        gradients.append((diffusion, [p.grad.clone() for p in network.parameters()]))
    (clone, plain), (same, guided) = gradients
    assert all(torch.equal(a, b) for a, b in zip(clone, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
    assert all(p.grad is None for p in loss.qvalue_network_params.parameters())


def test_it_learns_what_the_diffusion_does(make_data):
    loss, network = distilled(lmbda=0.0)
    stepper = OfflineOptimizationStepper(loss, learning_rate=3e-3)
    assert set(stepper.groups) == {"actor_network", "qvalue_network", "guidance"}
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    data, latent = make_data(64), torch.randn(64, ACT)
    condition = data["observation"]
    with loss.actor_network_params.data.to_module(loss.actor_network, preserve_module_state=False):
        process = loss.actor_network.module
        wanted = process.sample(condition, deterministic=True, latent=latent)

    def distance():
        return (network(condition, latent).clamp(-1, 1) - wanted).square().mean().item()

    before = distance()
    for _ in range(200):
        optimizer.zero_grad()
        loss.actor_loss(data)[0].backward()
        optimizer.step()
    assert distance() < 0.3 * before


def test_targets_are_of_its_own_actions(make_data, run):
    loss, network = distilled()
    before = run(loss, make_data())["target_value"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert run(loss, make_data())["target_value"] != before


def test_a_policy_acts_by_it_and_takes_it_along(tmp_path):
    config = NetworkConfig(prompt="none", hidden=[16], one_step=True)
    torch.manual_seed(0)
    networks = make_networks(config, observations=torch.randn(9, 39))
    loss = get_algorithm("diffusion_ql").make_loss(networks, None, gamma=0.9, distillation=3.0)
    assert isinstance(loss.guidance, DistilledGuidance)
    assert loss.guidance.weight == 3.0
    policy = LLMDPDPolicy.from_networks(config, networks)
    with torch.no_grad():
        for parameter in loss.guidance.parameters():
            parameter.add_(0.1)
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    state = torch.randn(5, 39)
    one, other = (
        p(observation=state, generator=torch.Generator().manual_seed(1)) for p in (policy, loaded)
    )
    assert torch.equal(one, other)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="the distillation's weight is 0"):
        DistilledGuidance(make_mlp(OBS + ACT, (8,), ACT), 0.0)
    with pytest.raises(ConfigError, match=r"network.one_step is true: it needs"):
        NetworkConfig(prompt="none", one_step=True, candidates=3)
    config = NetworkConfig(prompt="none", one_step=True)
    with pytest.raises(ConfigError, match="algorithm=diffusion_bc distils nothing"):
        get_algorithm("diffusion_bc").check(
            "diffusion_bc", config, {"gamma": 0.9, "reward_scale": 1.0}
        )
