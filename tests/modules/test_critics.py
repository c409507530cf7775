from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from llmdpd_torchrl.modules import (
    make_qvalue_networks,
)
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.mark.parametrize("prompt_dim", [0, 5])
def test_keys_and_shapes(prompt_dim):
    critics = make_qvalue_networks(3, 2, prompt_dim, num=3, hidden=(8,))
    data = TensorDict(
        {
            "observation": torch.randn(4, 3),
            "action": torch.randn(4, 2),
            "prompt_embedding": torch.randn(4, 5),
        },
        [4],
    )
    assert len(critics) == 3
    for critic in critics:
        expected = ["observation", "action"] + ["prompt_embedding"] * bool(prompt_dim)
        assert critic.in_keys == expected
        assert critic(data)["state_action_value"].shape == (4, 1)


def test_each_critic_starts_elsewhere():
    first, second = make_qvalue_networks(3, 2)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert not torch.equal(one, other)


def test_the_observation_module_is_applied_and_copied():
    widen = nn.Linear(3, 6)
    first, second = make_qvalue_networks(6, 2, hidden=(8,), observation_module=widen)
    data = TensorDict({"observation": torch.randn(4, 3), "action": torch.randn(4, 2)}, [4])
    value = first(data.copy())["state_action_value"]
    inputs = torch.cat([widen(data["observation"]), data["action"]], -1)
    torch.testing.assert_close(value, first.module.mlp(inputs))
    assert first.module.observation_module is not second.module.observation_module


def test_a_conditioner_reads_all_but_the_action():
    class Gate(nn.Module):
        def forward(self, observation, gate):
            return observation * gate

    (critic,) = make_qvalue_networks(
        3, 2, num=1, hidden=(8,), conditioner=Gate(), condition_keys=["gate"]
    )
    assert critic.in_keys == ["observation", "action", "gate"]
    data = {"observation": torch.randn(4, 3), "action": torch.randn(4, 2)}
    shut = TensorDict({**data, "gate": torch.zeros(4, 1)}, [4])
    other = shut.clone().set("observation", torch.randn(4, 3))
    assert torch.equal(*(critic(d)["state_action_value"] for d in (shut, other)))
    with pytest.raises(ConfigError, match="not both"):
        make_qvalue_networks(3, 2, conditioner=Gate(), observation_module=nn.Identity())


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_shape(batch):
    (critic,) = make_qvalue_networks(3, 2, num=1, hidden=(8,))
    data = {"observation": torch.randn(*batch, 3), "action": torch.randn(*batch, 2)}
    assert critic(TensorDict(data, batch))["state_action_value"].shape == (*batch, 1)


def test_mistakes_are_named():
    (critic,) = make_qvalue_networks(3, 2, num=1, hidden=(8,))
    with pytest.raises(ConfigError, match=r"width 5, but gets 3 \+ 4 = 7"):
        critic.module(torch.randn(1, 3), torch.randn(1, 4))


def test_layer_norm_bounds_what_a_strange_action_is_worth():
    torch.manual_seed(0)
    data = TensorDict({"observation": torch.zeros(9, 3), "action": 1e6 * torch.randn(9, 2)}, [9])
    plain, normed = (
        make_qvalue_networks(3, 2, num=1, hidden=(16, 16), layer_norm=layer_norm)[0]
        for layer_norm in (False, True)
    )
    assert plain(data.copy())["state_action_value"].abs().max() > 1e3
    assert normed(data.copy())["state_action_value"].abs().max() < 10
