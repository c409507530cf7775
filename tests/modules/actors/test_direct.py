"""Actors without diffusion: their range, their draws, and their way to a file and back."""

from typing import get_args

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from llmdpd_torchrl.evaluation import EvaluationSettings
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.modules.config import DirectActor
from llmdpd_torchrl.policies import LLMDPDPolicy


def make(kind: str, **changes) -> tuple[NetworkConfig, LLMDPDPolicy]:
    torch.manual_seed(0)
    config = NetworkConfig(**{"prompt": "none", "actor": kind, "hidden": [16], **changes})
    return config, LLMDPDPolicy.from_networks(config, make_networks(config), {})


def states(rows: int = 5) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    return TensorDict({"observation": 9 * torch.randn(rows, 39, generator=generator)}, [rows])


@pytest.mark.parametrize("kind", get_args(DirectActor))
def test_saved_and_loaded_it_acts_the_same(kind, tmp_path):
    _, policy = make(kind)
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert loaded.config.actor == kind
    actions = [p.actor(states())["action"] for p in (policy, loaded)]
    assert torch.equal(*actions)
    assert actions[0].abs().max() <= 1
    assert kind in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", get_args(DirectActor))
def test_draws_are_the_generator_s(kind):
    _, policy = make(kind)
    with set_exploration_type(ExplorationType.RANDOM):
        first, again, other = (
            policy.actor(states(), generator=torch.Generator().manual_seed(seed))["action"]
            for seed in (3, 3, 4)
        )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind == "deterministic")
    assert first.abs().max() <= 1


@pytest.mark.parametrize("kind", get_args(DirectActor))
def test_an_evaluation_takes_the_mean_unless_told_to_draw(kind):
    _, policy = make(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        by_default = EvaluationSettings().act(policy, states(), generator)
        drawn = EvaluationSettings(acting="sampled").act(policy, states(), generator)
        assert torch.equal(by_default, policy.actor(states())["action"])
    assert torch.equal(by_default, drawn) == (kind == "deterministic")


@pytest.mark.parametrize("kind", get_args(DirectActor))
def test_it_can_read_a_retrieved_demonstration(kind):
    config, policy = make(kind, prompt="trajectory")
    assert policy.actor.in_keys == make("diffusion", prompt="trajectory")[1].actor.in_keys
    data = states()
    data["prompt", "observation_gate"] = torch.zeros(5, 1)
    data["retrieved_context"] = torch.randn(5, config.context_layout.width)
    assert policy.actor(data)["action"].shape == (5, 4)
