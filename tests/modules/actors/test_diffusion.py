from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.objectives import DiffusionBCLoss
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.utils.errors import ConfigError


def test_default_keys():
    actor = DiffusionActor(action_dim=2, condition_dim=3 + 5, hidden=(16,))
    data = TensorDict(
        {"observation": torch.randn(4, 3), "prompt_embedding": torch.randn(4, 5)}, [4]
    )
    assert actor.in_keys == ["observation", "prompt_embedding"]
    assert actor(data)["action"].shape == (4, 2)


def test_nested_keys_and_a_network_of_ones_own():
    actor = DiffusionActor(
        2,
        score_network=nn.Linear(2 + 3 + 1, 2),
        in_keys=[("agent", "state")],
        out_keys=[("agent", "action")],
    )
    data = TensorDict({("agent", "state"): torch.randn(4, 3)}, [4])
    assert actor(data)["agent", "action"].shape == (4, 2)


def test_a_network_must_come_from_somewhere():
    with pytest.raises(ValueError, match="condition_dim"):
        DiffusionActor(2)


def test_the_spec_sets_the_range():
    spec = Bounded(-0.1, 0.1, shape=(2,))
    actor = DiffusionActor(2, 3, in_keys=["observation"], spec=spec, hidden=(16,))
    action = actor(TensorDict({"observation": torch.randn(64, 3)}, [64]))["action"]
    assert actor.spec["action"].is_in(action)
    assert action.abs().max().item() == pytest.approx(0.1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_shape_and_several_conditions(batch):
    keys = ["observation", ("prompt", "gate"), "prompt_embedding"]
    actor = DiffusionActor(2, 3 + 1 + 5, in_keys=keys, hidden=(16,))
    data = TensorDict(
        {
            "observation": torch.randn(*batch, 3),
            ("prompt", "gate"): torch.ones(*batch, 1),
            "prompt_embedding": torch.randn(*batch, 5),
        },
        batch,
    )
    assert actor(data)["action"].shape == (*batch, 2)


def test_the_exploration_type_decides():
    actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,))
    data = TensorDict({"observation": torch.randn(8, 3)}, [8])

    def act(kind):
        with set_exploration_type(kind):
            return actor(data.copy())["action"]

    steady = act(ExplorationType.DETERMINISTIC)
    for kind in (ExplorationType.MEAN, ExplorationType.MODE):
        assert torch.equal(act(kind), steady)
    assert not torch.equal(act(ExplorationType.RANDOM), act(ExplorationType.RANDOM))


def test_a_generator_reaches_the_draws():
    actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,))
    data = TensorDict({"observation": torch.randn(8, 3)}, [8])
    one, other = (
        actor(data.copy(), generator=torch.Generator().manual_seed(2))["action"] for _ in range(2)
    )
    assert torch.equal(one, other)


def test_it_acts_in_an_environment_and_a_collector():
    env = ContinuousActionVecMockEnv()
    features, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    actor = DiffusionActor(
        actions, features, in_keys=["observation"], hidden=(8,), spec=env.action_spec
    )
    assert env.action_spec.is_in(env.rollout(3, actor)["action"])
    collector = Collector(
        ContinuousActionVecMockEnv,
        actor,
        frames_per_batch=6,
        total_frames=6,
        auto_register_policy_transforms=False,
    )
    try:
        (batch,) = list(collector)
    finally:
        collector.shutdown()
    assert batch["action"].shape == (6, actions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_moves(dtype):
    actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,)).to(dtype)
    action = actor(TensorDict({"observation": torch.randn(8, 3, dtype=dtype)}, [8]))["action"]
    assert action.dtype == dtype
    assert actor.module.schedule.betas.dtype in (torch.float32, torch.float64)


def test_it_trains_under_torchrls_loss():
    actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,))
    loss = DiffusionBCLoss(actor)
    data = TensorDict({"observation": torch.randn(8, 3), "action": torch.rand(8, 2)}, [8])
    loss(data)["loss_diffusion_bc"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Unbounded((2,)), "Unbounded"),
        (Bounded(-1.0, 1.0, (3,)), r"shape \[3\], but action_dim is 2"),
        (Bounded(-math.inf, math.inf, (2,)), "infinite"),
        (Composite(move=Bounded(-1.0, 1.0, (2,))), "no entry 'action'"),
        (Bounded(-torch.ones(2), torch.tensor([1.0, 2.0])), "ActionScaling"),
    ],
)
def test_a_spec_that_sets_no_range_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionActor(2, 3, spec=spec)


class TestFromTorchRL:
    def make(self, **kwargs):
        torch.manual_seed(0)
        theirs = TorchRLDiffusionActor(action_dim=2, obs_dim=3, num_steps=5, **kwargs)
        return theirs, DiffusionActor.from_torchrl(theirs)

    def test_noise_and_loss_are_the_same(self):
        theirs, ours = self.make(beta_start=0.1, beta_end=0.5)
        action, step = torch.rand(6, 2) * 2 - 1, torch.arange(6) % 5
        torch.manual_seed(1)
        expected, _ = theirs.module.add_noise(action, step)
        torch.manual_seed(1)
        noisy, _ = ours.module.add_noise(action, step)
        torch.testing.assert_close(noisy, expected)

    @pytest.mark.parametrize("guidance", ["chain", "one_step"])
    def test_training_one_trains_the_other(self, guidance):
        theirs, ours = self.make()
        critics = make_qvalue_networks(3, 2, hidden=(16,))
        loss = DiffusionQLLoss(ours, critics, guidance=guidance, target_sampling_steps=2)
        flag = torch.zeros(6, 1, dtype=torch.bool)
        following = {"observation": torch.randn(6, 3), "reward": torch.randn(6, 1),
                     "done": flag, "terminated": flag}  # fmt: skip
        data = TensorDict(
            {"observation": torch.randn(6, 3), "action": torch.rand(6, 2), "next": following}, [6]
        )
        out = loss(data)
        assert out["guidance"] != 0
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            before = theirs(data.clone())["action"]
            torch.optim.SGD(loss.parameters(), 0.1).step()
            after = theirs(data.clone())["action"]
        assert not torch.equal(before, after)

    def test_its_spec_sets_the_range(self):
        _, ours = self.make(spec=Bounded(-2.0, 2.0, (2,)))
        assert ours.module.action_bounds == (-2.0, 2.0)
