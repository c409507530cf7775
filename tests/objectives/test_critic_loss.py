"""What critics learn: clipped targets, expectiles, and categorical values."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import CriticLoss, DiffusionQLLoss, return_bounds
from llmdpd_torchrl.utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT = 3, 2
BOUNDS = (-5.0, 15.0)


def bandit(observation, action, reward, flags):
    after = {"observation": observation, "reward": reward, "done": flags, "terminated": flags}
    return TensorDict({"observation": observation, "action": action, "next": after}, [64])


def make_loss(bins: int | None = None, **kwargs) -> DiffusionQLLoss:
    torch.manual_seed(0)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    support = None if bins is None else torch.linspace(*BOUNDS, bins)
    critics = make_qvalue_networks(OBS, ACT, hidden=(16,), bins=support, layer_norm=True)
    return DiffusionQLLoss(actor, critics, **kwargs)


def test_squared_errors_by_default(make_ql, make_data, run):
    losses = make_ql(), make_ql(critic_loss=CriticLoss())
    assert torch.equal(*(run(loss, make_data())["loss_qvalue"] for loss in losses))


def test_targets_do_not_leave_the_bounds(make_ql, make_data, run):
    data = make_data()
    data["next", "reward"] += 100.0
    free, bound = make_ql(), make_ql(critic_loss=CriticLoss(bounds=BOUNDS))
    assert run(free, data)["target_value"] > 50
    assert run(bound, data)["target_value"] == BOUNDS[1]


def test_an_expectile_weighs_what_is_too_low():
    value, target = torch.tensor([[0.0, 4.0], [2.0, 1.0]]), torch.tensor([1.0, 3.0])
    found = CriticLoss(expectile=0.9)(value, target)
    expected = torch.tensor([[1.8 * 1, 0.2 * 1], [0.2 * 1, 1.8 * 4]])
    torch.testing.assert_close(found, expected)


def test_the_expectile_of_noisy_targets_is_learnt():
    target = torch.cat([torch.zeros(50), torch.ones(50)])
    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        CriticLoss(expectile=0.8)(value.expand(1, 100), target).mean().backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("deactivate_vmap", [True, False])
def test_categorical_critics_learn_by_cross_entropy(make_data, run, deactivate_vmap):
    critic_loss = CriticLoss(bounds=BOUNDS)
    loss = make_loss(21, critic_loss=critic_loss, deactivate_vmap=deactivate_vmap, lmbda=1.0)
    out = run(loss, make_data())
    assert BOUNDS[0] < out["q_value"] < BOUNDS[1]
    # All bins are alike at first, but for the random weights: about log 21 a critic.
    assert 2 * 2.5 < out["loss_qvalue"] < 2 * 3.8
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_the_value_of_a_categorical_critic_is_the_mean_of_its_bins(make_data):
    bins = torch.linspace(*BOUNDS, 5)
    (critic,) = make_qvalue_networks(OBS, ACT, num=1, hidden=(8,), bins=bins)
    data = critic(make_data())
    mean = (F.softmax(data["state_action_logits"], -1) * bins).sum(-1, keepdim=True)
    torch.testing.assert_close(data["state_action_value"], mean)


def test_categorical_critics_find_the_value_of_abandit():
    loss = make_loss(41, critic_loss=CriticLoss(bounds=BOUNDS), lmbda=0.0)
    loss.make_value_estimator(gamma=0.0)
    optimizer = torch.optim.Adam(loss.qvalue_network_params.parameters(), 1e-2)
    torch.manual_seed(3)
    for _ in range(300):
        observation, action = torch.randn(64, OBS), torch.rand(64, ACT) * 2 - 1
        reward = 10 * action[:, :1].abs()
        flags = torch.ones(64, 1, dtype=torch.bool)
        value, _ = loss.qvalue_loss(bandit(observation, action, reward, flags))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    _, found = loss.qvalue_loss(bandit(observation, action, reward, flags))
    assert found["td_error"].mean() < 0.5


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"critic_loss.bounds is \[2.0, 1.0\]"):
        CriticLoss(bounds=(2.0, 1.0))
    with pytest.raises(ConfigError, match=r"critic_loss.expectile is 1.0"):
        CriticLoss(expectile=1.0)
    with pytest.raises(ConfigError, match=r"categorical critics need critic_loss.bounds"):
        make_loss(21)


def test_the_bounds_of_returns():
    rewards = torch.tensor([0.5, 2.0, 1.0])
    assert return_bounds(rewards, 0.5) == (0.0, 4.0)
    assert return_bounds(-rewards, 1.0, steps=10) == (-20.0, 0.0)
    assert return_bounds(rewards, 0.5, steps=2) == (0.0, 3.0)
    with pytest.raises(ConfigError, match="gamma is 1"):
        return_bounds(rewards, 1.0)
    assert return_bounds(torch.zeros(3), 0.9) == (0.0, 1.0)
