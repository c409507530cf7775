import torch
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.prompts.anchored_replay import START_OVER
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.transforms import ObservationGateTransform, TrajectoryPromptTransform
from llmdpd_torchrl.transforms.recovery import HOLD, PATIENCE, RecoveryTransform

HAND = METAWORLD_OBSERVATION_LAYOUT["fields"]["hand_position"]
STILL, UP = torch.zeros(4), torch.tensor([0.0, 0.0, 1.0, 0.0])


def count(observation, row, progress):
    progress = progress + 1
    return progress.unsqueeze(-1).expand(*progress.shape, 4).float(), progress


def reach():
    return MetaWorldEnv("reach-v3", num_goals=2, max_steps=100)


def make(env, bank, trained=()):
    prompts = TrajectoryPromptTransform(bank, choice="first")
    recovery = RecoveryTransform(count, HAND, 4, bank.length)
    return TransformedEnv(env, Compose(prompts, ObservationGateTransform(trained), recovery))


def recovering(env, actions):
    """The steps before which the replay should act, under given actions [A]."""
    state = env.reset()
    steps = []
    for number, action in enumerate(actions):
        if state["is_recovering"]:
            steps.append(number)
        state = env.step(state.set("action", action))["next"]
    env.close()
    return steps


def test_specs(bank):
    env = make(reach(), bank)
    check_env_specs(env)
    env.close()


def test_a_hand_at_rest_is_led_by_the_replay_and_then_by_the_policy_again(bank):
    first = PATIENCE - 1  # the observation of the reset is one of them
    steps = recovering(make(reach(), bank), [STILL] * 90)
    assert steps == [*range(first, first + HOLD), *range(first + 2 * HOLD, 90)]


def test_a_replay_that_stands_still_as_well_starts_over(bank):
    env = make(reach(), bank)
    state, progress = env.reset(), []
    for _ in range(PATIENCE + HOLD + 1):
        state = env.step(state.set("action", STILL))["next"]
        progress.append(state["replay_progress"].item())
    env.close()
    failed = PATIENCE + HOLD - 2
    assert progress[: failed + 2] == [*range(1, failed + 1), START_OVER, START_OVER + 1]


def test_a_hand_that_moves_is_left_alone(bank):
    assert recovering(make(reach(), bank), ([UP] * 8 + [-UP] * 8) * 4) == []


def test_where_the_gate_is_open_the_policy_acts(bank):
    trained = range(50)
    assert recovering(make(reach(), bank, trained), [STILL] * 40) == []


def test_an_episode_that_begins_leaves_the_others_alone(bank):
    env = make(SerialEnv(2, reach), bank)
    state = env.reset()
    for _ in range(PATIENCE - 1):
        state = env.step(state.set("action", torch.zeros(2, 4)))["next"]
    state["_reset"] = torch.tensor([[True], [False]])
    state = env.reset(state)
    assert state["is_recovering"].squeeze(-1).tolist() == [False, True]
    assert state["replay_progress"].squeeze(-1).tolist() == [0, PATIENCE - 1]
    env.close()
