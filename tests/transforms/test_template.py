"""The eleven checks of TorchRL's template for transforms, on both prompt transforms."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, ParallelEnv, RewardScaling, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.transforms import TextPromptTransform, TrajectoryPromptTransform

REACH = METAWORLD_TASKS.index("reach-v3")
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


def reach():
    return MetaWorldEnv("reach-v3", num_goals=2, max_steps=6)


class Make:
    """A transform by name and mode; also the environment with it, for a worker process."""

    def __init__(self, name, mode, bank):
        self.name, self.mode, self.bank = name, mode, bank

    def __call__(self):
        if self.name == "text":
            return TextPromptTransform(TABLE)
        return TrajectoryPromptTransform(self.bank, mode=self.mode)

    def env(self):
        return TransformedEnv(reach(), self())

    @property
    def keys(self):
        return self().out_keys

    def is_right(self, tensordict):
        """Whether what is written belongs to the task reach."""
        rows = self.bank.rows_of(REACH)
        if self.name == "text":
            return bool((tensordict[self.keys[0]] == REACH).all())
        if self.mode == "index":
            return bool(torch.isin(tensordict[self.keys[0]], rows).all())
        mask = tensordict["prompt", "trajectory", "mask"]
        observation = tensordict["prompt", "trajectory", "observation"]
        shown = observation.reshape(-1, *observation.shape[-2:])
        own = self.bank.prompts["observation"][rows]
        known = [any(torch.equal(one, other) for other in own) for one in shown]
        return bool(mask.any(-1).all()) and all(known)


@pytest.fixture(params=["text-index", "trajectory-tensor", "trajectory-index"])
def make(request, bank):
    return Make(*request.param.split("-"), bank)


@pytest.fixture(params=["text-index", "trajectory-tensor"])
def one_make(request, bank):
    """One of each is enough where processes are started."""
    return Make(*request.param.split("-"), bank)


def sampled(dataset, transform):
    """A batch of reach's transitions as a buffer has them, and the transform's part."""
    data = dataset.transitions[dataset.transitions["task_id"].squeeze(-1) == REACH]
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(len(data)), batch_size=8, transform=transform
    )
    buffer.extend(data)
    return buffer, data


def test_single_trans_env_check(make):
    env = make.env()
    check_env_specs(env)
    env.close()


def test_serial_trans_env_check(make):
    env = SerialEnv(2, make.env)
    check_env_specs(env)
    env.close()


@pytest.mark.integration
def test_parallel_trans_env_check(one_make):
    env = ParallelEnv(2, one_make.env)
    try:
        check_env_specs(env)
        assert one_make.is_right(env.reset())
    finally:
        env.close()


def test_trans_serial_env_check(make):
    env = TransformedEnv(SerialEnv(2, reach), make())
    check_env_specs(env)
    env.close()


@pytest.mark.integration
def test_trans_parallel_env_check(one_make):
    env = TransformedEnv(ParallelEnv(2, reach), one_make())
    try:
        check_env_specs(env)
        assert one_make.is_right(env.reset())
    finally:
        env.close()


def test_transform_no_env(make):
    batch = TensorDict(
        {"task_id": torch.full((3, 1), REACH), "trajectory_id": torch.full((3, 1), 10_000)}, [3]
    )
    assert make.is_right(make()(batch))


def test_transform_compose(make):
    batch = TensorDict(
        {"task_id": torch.full((3, 1), REACH), "trajectory_id": torch.full((3, 1), 10_000)}, [3]
    )
    batch["next", "reward"] = torch.ones(3, 1)
    scaling = RewardScaling(loc=0.0, scale=2.0, in_keys=[("next", "reward")])
    out = Compose(scaling, make())(batch)
    assert make.is_right(out)
    assert (out["next", "reward"] == 2.0).all()


def test_transform_env(make):
    env = make.env()
    rollout = env.rollout(4)
    assert make.is_right(rollout)
    for key in make.keys:  # one prompt an episode, carried to every step
        assert (rollout[key] == rollout[key][:1]).all()
    for key in make.keys:
        assert key in env.observation_spec.keys(True, True)
    env.close()


def test_transform_model(make):
    key = make.keys[-1] if make.mode == "index" else make.keys[2]
    network = TensorDictModule(lambda value: value.float() * 2, [key], ["out"])
    batch = TensorDict(
        {"task_id": torch.full((3, 1), REACH), "trajectory_id": torch.full((3, 1), 10_000)}, [3]
    )
    out = TensorDictSequential(make(), network)(batch)
    torch.testing.assert_close(out["out"], out[key].float() * 2)
    assert out["out"].shape[-1] == 1


@pytest.mark.parametrize("when", ["given", "appended"])
def test_transform_rb(make, when, dataset):
    transform = make()
    buffer, data = sampled(dataset, transform if when == "given" else None)
    if when == "appended":
        buffer.append_transform(transform)
    batch = buffer.sample()
    assert make.is_right(batch)
    # What is stored has no prompt, and nothing that is sampled is a string.
    stored = buffer.storage.get(slice(0, 1)).keys(True, True)
    assert not [key for key in stored if "prompt" in key]
    assert all(isinstance(value, torch.Tensor) for value in batch.values(True, True))
    assert len(buffer) == len(data)


def test_transform_inverse(make, dataset):
    transform = make()
    assert transform.in_keys_inv == []
    action = TensorDict({"action": torch.rand(4), "task_id": torch.tensor([REACH])}, [])
    kept = transform.inv(action.clone())
    assert (kept == action).all()
    buffer, data = sampled(dataset, transform)
    assert torch.equal(buffer.storage.get(slice(0, 3))["action"], data["action"][:3])
