from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from llmdpd_torchrl.modules import (
    SELECTIONS,
    DiffusionActor,
    QSelectedActor,
    make_qvalue_networks,
)
from llmdpd_torchrl.utils.errors import ConfigError, DataError


class Preference(nn.Module):
    """Q(s, a) = -scale |a - goal|^2."""

    def __init__(self, goal: float, scale: float = 1.0) -> None:
        super().__init__()
        self.goal, self.scale = goal, scale

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -self.scale * (action - self.goal).square().sum(-1, keepdim=True)


def preference(*args: float) -> TensorDictModule:
    return TensorDictModule(Preference(*args), ["observation", "action"], ["state_action_value"])


def make_actor(**kwargs) -> DiffusionActor:
    torch.manual_seed(0)
    kwargs.setdefault("spec", Bounded(-1.0, 1.0, (2,)))
    return DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,), **kwargs)


def make_data(*batch: int) -> TensorDict:
    return TensorDict({"observation": torch.randn(*batch, 3)}, batch)


def test_argmax_takes_the_best_of_the_actors_own_draws():
    actor = make_actor()
    policy = QSelectedActor(actor, [preference(0.5)], selection="argmax", num_candidates=20)
    data = make_data(6)
    chosen = policy(data.copy(), generator=torch.Generator().manual_seed(5))
    draws = actor.module.sample(
        data["observation"], sample_shape=(20,), generator=torch.Generator().manual_seed(5)
    )
    values = -(draws - 0.5).square().sum(-1)
    best = values.argmax(0)
    torch.testing.assert_close(chosen["action"], draws[best, torch.arange(6)])
    torch.testing.assert_close(chosen["state_action_value"][:, 0], values.amax(0))


def test_the_least_critic_counts():
    critics = [preference(-0.5), preference(0.5)]
    policy = QSelectedActor(make_actor(), critics, selection="argmax", num_candidates=200)
    action = policy(make_data(50))["action"]
    # max_a min_j lies between the two goals.
    assert action.mean(0).abs().max() < 0.1


def test_softmax_has_the_stated_odds():
    class Fixed(nn.Module):
        def forward(self, observation, action):
            values = torch.tensor([0.0, 1.0, 2.0])
            return values.view(3, 1, 1).expand(*action.shape[:-1], 1)

    critic = TensorDictModule(Fixed(), ["observation", "action"], ["state_action_value"])
    policy = QSelectedActor(make_actor(), [critic], num_candidates=3, temperature=0.5)
    value = policy(make_data(20_000))["state_action_value"]
    odds = torch.softmax(torch.tensor([0.0, 1.0, 2.0]) / 0.5, 0)
    for candidate, expected in enumerate(odds):
        share = (value == candidate).float().mean()
        torch.testing.assert_close(share, expected, rtol=0, atol=0.012)


def test_a_cold_softmax_is_argmax_and_a_hot_one_is_the_policy():
    actor, data = make_actor().requires_grad_(False), make_data(400)
    cold = QSelectedActor(actor, [preference(0.0)], num_candidates=30, temperature=1e-4)
    hot = QSelectedActor(actor, [preference(0.0)], num_candidates=30, temperature=1e4)
    plain = actor(data.copy())["action"].square().mean()
    assert cold(data.copy())["action"].square().mean() < 0.3 * plain
    assert hot(data.copy())["action"].square().mean() == pytest.approx(plain.item(), rel=0.15)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_a_selection_has_any_batch_shape(batch, selection, kind):
    critics = make_qvalue_networks(3, 2, hidden=(8,))
    policy = QSelectedActor(make_actor(), critics, selection=selection, num_candidates=4)
    with set_exploration_type(kind), torch.no_grad():
        data = policy(make_data(*batch))
    assert data["action"].shape == (*batch, 2)
    assert data.batch_size == batch
    for key in policy.out_keys:
        assert policy.spec[key].expand(*batch, *policy.spec[key].shape).is_in(data[key])


def test_extra_dimensions_behind_the_batch_are_rows_too():
    policy = QSelectedActor(make_actor(), [preference(0.0)], num_candidates=4)
    data = TensorDict({"observation": torch.randn(2, 5, 3)}, [2])
    assert policy(data)["action"].shape == (2, 5, 2)


class TestDeterministic:
    @pytest.mark.parametrize("selection", ["argmax", "softmax"])
    @pytest.mark.parametrize(
        "kind", [ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN]
    )
    def test_it_repeats_ignores_the_batch_and_draws_nothing(self, selection, kind):
        critics = [preference(0.3)]
        policy = QSelectedActor(make_actor(), critics, selection=selection, num_candidates=8)
        again = QSelectedActor(make_actor(), critics, selection="argmax", num_candidates=8)
        data, state = make_data(6), torch.get_rng_state()
        with set_exploration_type(kind):
            action = policy(data.copy())["action"]
            torch.testing.assert_close(policy(data.copy())["action"], action, rtol=0, atol=0)
            torch.testing.assert_close(policy(data[2:3].copy())["action"], action[2:3])
            assert torch.equal(torch.get_rng_state(), state)
            torch.testing.assert_close(again(data.copy())["action"], action)

    def test_the_actors_own_action_is_a_candidate(self):
        actor = make_actor()
        data = make_data(50)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            own = actor(data.copy())["action"]
            single = QSelectedActor(actor, [preference(0.3)], num_candidates=1)
            torch.testing.assert_close(single(data.copy())["action"], own)
            several = QSelectedActor(actor, [preference(0.3)], num_candidates=16)
            value = several(data.copy())["state_action_value"][:, 0]
        own_value = -(own - 0.3).square().sum(-1)
        assert (value >= own_value - 1e-6).all()
        assert (value > own_value + 1e-6).any()


def test_the_condition_is_computed_once_and_for_each_row_once():
    shapes = []

    class Conditioner(nn.Module):
        def forward(self, observation):
            shapes.append(observation.shape)
            return observation

    actor = make_actor(conditioner=Conditioner())
    QSelectedActor(actor, [preference(0.0)], num_candidates=7)(make_data(4))
    assert shapes == [(4, 3)]


def test_keys_are_the_union_and_may_be_nested():
    actor = DiffusionActor(
        2,
        score_network=nn.Linear(2 + 3 + 1, 2),
        in_keys=[("agent", "state")],
        out_keys=[("agent", "action")],
        spec=None,
    )

    class Critic(nn.Module):
        def forward(self, action, goal):
            return -(action - goal).square().sum(-1, keepdim=True)

    critic = TensorDictModule(Critic(), [("agent", "action"), "goal"], [("agent", "q")])
    policy = QSelectedActor(actor, [critic], num_candidates=5)
    assert policy.in_keys == [("agent", "state"), "goal"]
    assert policy.out_keys == [("agent", "action"), ("agent", "q")]
    data = TensorDict({("agent", "state"): torch.randn(4, 3), "goal": torch.zeros(4, 2)}, [4])
    before = data.clone()
    out = policy(data)
    assert out is data
    assert set(out.keys(True, True)) == {*policy.in_keys, *policy.out_keys}
    assert torch.equal(out["agent", "state"], before["agent", "state"])


def test_gradients_reach_actor_and_critics():
    critics = make_qvalue_networks(3, 2, hidden=(8,))
    policy = QSelectedActor(make_actor(), critics, selection="argmax", num_candidates=4)
    data = policy(make_data(16))
    (data["action"].sum() + data["state_action_value"].sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


@pytest.mark.parametrize("selection", SELECTIONS)
def test_one_graph_without_a_break(selection):
    critics = make_qvalue_networks(3, 2, hidden=(8,))
    policy = QSelectedActor(make_actor(), critics, selection=selection, num_candidates=3)
    compiled = torch.compile(policy, backend="eager", fullgraph=True)
    data = make_data(4)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(7)
        action = compiled(data.copy())["action"]
        torch.manual_seed(7)
        torch.testing.assert_close(action, policy(data.copy())["action"])


def test_it_is_copied_pickled_and_cast():
    policy = QSelectedActor(make_actor(), make_qvalue_networks(3, 2, hidden=(8,)), num_candidates=3)
    data = make_data(4)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = policy(data.copy())["action"]
        for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            assert torch.equal(other(data.copy())["action"], action)
        wide = copy.deepcopy(policy).double()(data.double())["action"]
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), action, rtol=1e-4, atol=1e-4)
    # The number of candidates is a setting: another one loads the same weights.
    QSelectedActor(
        make_actor(), make_qvalue_networks(3, 2, hidden=(8,)), num_candidates=9
    ).load_state_dict(policy.state_dict())


@pytest.mark.parametrize("selection", SELECTIONS)
def test_it_acts_in_an_environment_and_a_collector(selection):
    env = ContinuousActionVecMockEnv()
    check_env_specs(env)
    features, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    actor = DiffusionActor(
        actions, features, in_keys=["observation"], hidden=(8,), spec=env.action_spec
    )
    critics = make_qvalue_networks(features, actions, hidden=(8,))
    policy = QSelectedActor(actor, critics, selection=selection, num_candidates=3)
    assert env.action_spec.is_in(env.rollout(3, policy)["action"])
    collector = Collector(
        ContinuousActionVecMockEnv,
        policy,
        frames_per_batch=6,
        total_frames=6,
        exploration_type=ExplorationType.RANDOM,
        auto_register_policy_transforms=False,
    )
    try:
        (batch,) = list(collector)
    finally:
        collector.shutdown()
    assert batch["action"].shape == (6, actions)
    assert "state_action_value" in batch


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"selection": "best"}, "'best'.*argmax, softmax"),
        ({"num_candidates": 0}, "num_candidates is 0: it must be at least 1"),
        ({"temperature": 0.0}, 'temperature is 0.0.*selection="argmax"'),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"critics": []}, "critics is empty"),
    ],
)
def test_mistakes_are_named_when_built(kwargs, message):
    critics = kwargs.pop("critics", [preference(0.0)])
    with pytest.raises(ConfigError, match=message):
        QSelectedActor(make_actor(), critics, **kwargs)


def test_a_critic_of_another_action_is_refused():
    with pytest.raises(ConfigError, match="name the action alike"):
        QSelectedActor(make_actor(out_keys=["move"]), [preference(0.0)])


def test_a_missing_key_is_named():
    policy = QSelectedActor(make_actor(), [preference(0.0)])
    with pytest.raises(DataError, match="reads 'observation', which the data lacks"):
        policy(TensorDict({"state": torch.zeros(2, 3)}, [2]))


def test_dispatch_without_a_tensordict():
    policy = QSelectedActor(make_actor(), [preference(0.0)], num_candidates=4)
    data = make_data(5)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action, value = policy(observation=data["observation"])
        policy(data)
    assert torch.equal(action, data["action"])
    assert torch.equal(value, data["state_action_value"])
