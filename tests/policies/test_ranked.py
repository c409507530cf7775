"""A policy that acts by its critics: it holds them, ranks by them, and takes them along."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from llmdpd_torchrl.baselines import get_algorithm
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.modules.critics import share_critics
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, TargetUpdater
from llmdpd_torchrl.utils.errors import ConfigError

CONFIG = NetworkConfig(prompt="none", hidden=[16], critic_bins=11, candidates=12)


def observations(rows=6):
    return TensorDict({"observation": torch.randn(rows, 39)}, [rows])


def act(policy, state, **options):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return policy(state.copy(), generator=generator, **options)["action"]


def test_it_takes_the_best_of_its_samples():
    torch.manual_seed(0)
    networks = make_networks(CONFIG, observations=torch.randn(9, 39))
    policy, state = LLMDPDPolicy.from_networks(CONFIG, networks), observations()

    def value(actions):
        rows = state.copy().set("action", actions)
        values = [critic(rows.copy())["state_action_value"] for critic in networks.qvalues]
        return torch.stack(values).amin(0)

    ranked, sampled = act(policy, state, acting="ranked"), act(policy, state, acting="sampled")
    assert (value(ranked) >= value(sampled)).all()
    assert value(ranked).mean() > value(sampled).mean()
    assert torch.equal(act(policy, state), ranked)  # its own way
    with set_exploration_type(ExplorationType.RANDOM):
        assert torch.equal(act(policy, state), ranked)
    plain = act(policy, state, acting="deterministic")
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        assert torch.equal(plain, networks.actor(state.copy())["action"])


def test_its_critics_are_the_training_s_and_saved_with_it(tmp_path):
    torch.manual_seed(0)
    networks = make_networks(CONFIG, observations=torch.randn(9, 39), value_bounds=(-3.0, 3.0))
    policy = LLMDPDPolicy.from_networks(CONFIG, networks)
    loss = get_algorithm("diffusion_ql").make_loss(
        networks, None, gamma=0.9, bounded=True, value_bounds=(-3.0, 3.0)
    )
    assert isinstance(loss, DiffusionQLLoss)
    share_critics(networks.qvalues, loss.target_qvalue_network_params)
    state = observations(32)
    flags = torch.zeros(32, 1, dtype=torch.bool)
    after = {**observations(32), "reward": torch.randn(32, 1), "done": flags, "terminated": flags}
    batch = state.copy().update({"action": torch.rand(32, 4) * 2 - 1, "next": after})
    before = act(policy, state)
    stepper = OfflineOptimizationStepper(loss, learning_rate=0.1)
    updater = TargetUpdater(loss)
    for _ in range(20):
        losses = loss(batch)
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        stepper.optimizer.step()
        stepper.optimizer.zero_grad()
        updater.step()
    for number, critic in enumerate(networks.qvalues):
        trained = loss.target_qvalue_network_params[number]
        for name, value in critic.named_parameters():
            assert torch.equal(value, trained[tuple(name.split("."))]), name
    after = act(policy, state)
    assert not torch.equal(before, after)
    resumed = copy.deepcopy(loss.state_dict())
    loss.target_qvalue_network_params.data.zero_()
    assert not torch.equal(act(policy, state), after)
    loss.load_state_dict(resumed)
    assert torch.equal(act(policy, state), after)
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert (loaded.config.candidates, loaded.config.critic_bins) == (12, 11)
    assert torch.equal(act(loaded, state), after)


def test_a_policy_without_critics_says_so():
    config = NetworkConfig(prompt="none", hidden=[16])
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    with pytest.raises(ConfigError, match=r"no critics to rank by: train with network.candidates"):
        act(policy, observations(), acting="ranked")


def test_who_can_have_candidates():
    with pytest.raises(ConfigError, match=r"network.candidates is 5: network.actor=gaussian"):
        NetworkConfig(prompt="none", actor="gaussian", candidates=5)
    with pytest.raises(ConfigError, match="algorithm=diffusion_bc has no critics"):
        get_algorithm("diffusion_bc").check(
            "diffusion_bc",
            NetworkConfig(prompt="none", candidates=5),
            {"gamma": 0.9, "reward_scale": 1.0},
        )
