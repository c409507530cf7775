import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.transforms import TrajectoryPromptTransform
from llmdpd_torchrl.transforms.replay import ReplayTransform


def count(observation, row, progress):
    """Play the number of the step, 0 where an episode begins."""
    progress = progress + 1
    return progress.unsqueeze(-1).expand(*progress.shape, 4).float(), progress


def make(bank):
    prompts = TrajectoryPromptTransform(bank, choice="first")
    return Compose(prompts, ReplayTransform(count, 4, bank.length))


def reach():
    return MetaWorldEnv("reach-v3", num_goals=2, max_steps=6)


def test_specs(bank):
    env = TransformedEnv(reach(), make(bank))
    check_env_specs(env)
    env.close()


def test_progress_is_of_the_episode(bank):
    env = TransformedEnv(reach(), make(bank))
    for _ in range(2):
        rollout = env.rollout(5)
        assert rollout["replay_progress"].squeeze(-1).tolist() == [0, 1, 2, 3, 4]
        assert rollout["replayed_action"][:, 0].tolist() == [0, 1, 2, 3, 4]
    env.close()


def test_an_episode_that_begins_leaves_the_others_alone(bank):
    env = TransformedEnv(SerialEnv(2, reach), make(bank))
    state = env.reset()
    for _ in range(3):
        state = env.step(state.set("action", torch.zeros(2, 4)))["next"]
    state["_reset"] = torch.tensor([[True], [False]])
    state = env.reset(state)
    assert state["replay_progress"].squeeze(-1).tolist() == [0, 3]
    assert state["replayed_action"][:, 0].tolist() == [0, 3]
    state = env.step(state.set("action", torch.zeros(2, 4)))["next"]
    assert state["replay_progress"].squeeze(-1).tolist() == [1, 4]
    env.close()


def test_it_is_for_environments():
    with pytest.raises(RuntimeError, match="for environments"):
        ReplayTransform(count, 4, 9)(TensorDict({}, []))
