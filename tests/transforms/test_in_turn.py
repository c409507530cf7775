import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.prompts import TrajectoryPromptBank
from llmdpd_torchrl.prompts.anchored_replay import START_OVER
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.transforms import (
    DemonstrationsInTurn,
    ObservationGateTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.transforms.recovery import RecoveryTransform
from llmdpd_torchrl.utils.errors import ConfigError

REACH = METAWORLD_TASKS.index("reach-v3")
ROW = ("prompt", "trajectory_index")
HAND = METAWORLD_OBSERVATION_LAYOUT["fields"]["hand_position"]


@pytest.fixture
def three():
    """A bank of three prompts of one task, behind one of another."""
    prompts = TensorDict({"mask": torch.ones(4, 5, dtype=torch.bool)}, [4, 5])
    tasks = torch.tensor([REACH + 1, REACH, REACH, REACH])
    return TrajectoryPromptBank(prompts, tasks, torch.full((4,), -1))


def reach():
    return MetaWorldEnv("reach-v3", num_goals=2, max_steps=30)


def make(env, bank, steps, *others):
    prompts = TrajectoryPromptTransform(bank, choice="first")
    return TransformedEnv(env, Compose(prompts, DemonstrationsInTurn(bank, steps), *others))


def rows(env, steps):
    state, found = env.reset(), []
    for _ in range(steps):
        found.append(state[ROW].flatten().tolist())
        state = env.step(state.set("action", torch.zeros(*env.batch_size, 4)))["next"]
    return found


def test_specs(three):
    env = make(reach(), three, 3)
    check_env_specs(env)
    env.close()


def test_the_next_demonstration_follows_and_after_the_last_the_first(three):
    env = make(reach(), three, 3)
    expected = [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1]
    assert rows(env, 11) == [[row] for row in expected]
    assert rows(env, 4) == [[1], [1], [1], [2]]  # each episode begins with the first
    env.close()


def test_an_episode_that_begins_leaves_the_others_alone(three):
    env = make(SerialEnv(2, reach), three, 3)
    state = env.reset()
    for _ in range(4):
        state = env.step(state.set("action", torch.zeros(2, 4)))["next"]
    assert state[ROW].flatten().tolist() == [2, 2]
    state = env.reset(state.set("_reset", torch.tensor([[True], [False]])))
    assert state[ROW].flatten().tolist() == [1, 2]
    for _ in range(2):
        state = env.step(state.set("action", torch.zeros(2, 4)))["next"]
    assert state[ROW].flatten().tolist() == [1, 3]
    env.close()


def test_a_replay_leads_back_to_where_the_next_one_begins(three):
    def count(observation, row, progress):
        progress = torch.where(progress == START_OVER, 100, progress + 1)
        return progress.unsqueeze(-1).expand(*progress.shape, 4).float(), progress

    recovery = RecoveryTransform(count, HAND, 4, 200)
    env = make(reach(), three, 3, ObservationGateTransform([]), recovery)
    state, found = env.reset(), []
    for _ in range(5):
        found.append((state["replay_progress"].item(), state["is_recovering"].item()))
        state = env.step(state.set("action", torch.zeros(4)))["next"]
    assert found == [(0, False), (1, False), (2, False), (100, True), (101, True)]
    env.close()


def test_a_turn_has_steps_and_a_buffer_has_no_turns(three):
    with pytest.raises(ConfigError, match="turn is 0 steps"):
        DemonstrationsInTurn(three, 0)
    with pytest.raises(RuntimeError, match="for environments"):
        DemonstrationsInTurn(three, 3)(TensorDict({"prompt": {"trajectory_index": 1}}, []))
