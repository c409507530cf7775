import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts.anchored_replay import (
    CARRY,
    GOAL,
    OBJECT,
    SKIP,
    START_OVER,
    WORLD,
    AnchoredReplay,
    choose_anchors,
)
from llmdpd_torchrl.prompts.spacing import cut_trajectory
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT

FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]
STEPS = 41
HOME, CUP, PLACE = (0.0, 0.4, 0.2), (0.2, 0.6, 0.0), (-0.2, 0.7, 0.1)


def way(*points):
    """Positions [41, 3] on straight ways from point to point."""
    points = torch.tensor(points)
    times = torch.linspace(0, len(points) - 1, STEPS)
    before = times.long().clamp(max=len(points) - 2)
    return torch.lerp(points[before], points[before + 1], (times - before).unsqueeze(-1))


def demonstration(hand, cup=None, goal=PLACE, second=(0.0, 0.0, 0.0), usable=True):
    """A demonstration whose actions are the hand's movement, of 1 cm a step at most."""
    observation = torch.zeros(STEPS, 39)
    still = torch.ones(STEPS, 1)
    positions = {
        "hand_position": hand,
        "object_1_position": still * torch.tensor(CUP) if cup is None else cup,
        "object_2_position": still * torch.tensor(second),
        "goal_position": still * torch.tensor(goal),
    }
    for name, values in positions.items():
        observation[:, slice(*FIELDS[name])] = values
    action = torch.zeros(STEPS, 4)
    action[:-1, :3] = hand.diff(dim=0) / 0.01
    steps = {"observation": observation, "action": action,
             "has_action": torch.full((STEPS,), usable)}  # fmt: skip
    return TensorDict({**steps, "next": {"reward": torch.zeros(STEPS, 1)}}, [STEPS])


def anchors(trajectory):
    names = ("hand", "object_1", "object_2", "goal")
    parts = [trajectory["observation"][:, slice(*FIELDS[f"{n}_position"])] for n in names]
    (anchor,) = set(choose_anchors(*parts).tolist())
    return anchor


def bank_of(*trajectories):
    prompts = torch.stack([cut_trajectory(each, STEPS) for each in trajectories])
    number = torch.arange(len(trajectories))
    return TrajectoryPromptBank(prompts, number, number)


CARRIED = torch.where(torch.arange(STEPS).unsqueeze(-1) < 20, torch.tensor(CUP),
                      way(HOME, CUP, PLACE))  # fmt: skip


@pytest.mark.parametrize(
    ("trajectory", "anchor"),
    [
        (demonstration(way(HOME, CUP)), OBJECT),
        (demonstration(way(HOME, PLACE)), GOAL),
        (demonstration(way(HOME, (0.0, 0.9, 0.3))), WORLD),
        (demonstration(way(HOME, (0.3, 0.9, 0.1)), second=(0.3, 0.9, 0.05)), WORLD),
        (demonstration(way(HOME, CUP, PLACE), CARRIED), CARRY),
        (demonstration(way(HOME, CUP, PLACE), CARRIED, goal=(0.2, 0.9, 0.0)), OBJECT),
    ],
    ids=["to the object", "to the goal", "to a place", "to the second", "carries", "takes away"],
)
def test_the_anchor_is_read_off_the_demonstration(trajectory, anchor):
    assert anchors(trajectory) == anchor


@pytest.mark.parametrize("usable", [True, False])
def test_the_hand_follows_what_leads_it_to_another_place(usable):
    """As also where the actions are but differences of states."""
    replay = AnchoredReplay(bank_of(demonstration(way(HOME, PLACE), usable=usable)), FIELDS)
    observation, goal = demonstration(way(HOME, PLACE))["observation"][:1].clone(), (0.1, 0.6, 0.2)
    observation[:, slice(*FIELDS["goal_position"])] = torch.tensor(goal)
    progress = torch.tensor([-1])
    for _ in range(3 * STEPS):
        action, progress = replay(observation, torch.tensor([0]), progress)
        observation[:, :3] += 0.01 * action[:, :3]
    assert torch.allclose(observation[0, :3], torch.tensor(goal), atol=0.01)


def test_progress_never_goes_back_and_skips_few_steps():
    trajectory = demonstration(way(HOME, CUP))
    replay = AnchoredReplay(bank_of(trajectory), FIELDS)
    torch.manual_seed(0)
    observation, row = trajectory["observation"][:1].clone(), torch.tensor([0])
    last = torch.tensor([0])
    for step in range(STEPS):
        observation[:, :3] = trajectory["observation"][step, :3] + 0.01 * torch.randn(3)
        progress = replay(observation, row, last)[1]
        assert last <= progress <= last + SKIP
        last = progress
    assert last > STEPS // 2


def test_where_the_place_is_lost_the_replay_enters_again():
    trajectory = demonstration(way(HOME, CUP))
    replay = AnchoredReplay(bank_of(trajectory), FIELDS)
    states, row = trajectory["observation"], torch.tensor([0])
    for last, step in ((5, 35), (35, 5)):
        assert replay(states[step : step + 1], row, torch.tensor([last]))[1] == step


def test_a_closed_path_is_played_in_its_order():
    """A nearest step alone, on the way back, would not know which way to go."""
    trajectory = demonstration(way(HOME, CUP, HOME))
    replay = AnchoredReplay(bank_of(trajectory), FIELDS)
    states, row = trajectory["observation"], torch.tensor([0])
    out = replay(states[10:11], row, torch.tensor([10]))
    back = replay(states[30:31], row, torch.tensor([29]))
    assert (out[1], back[1]) == (10, 30)
    assert torch.allclose(out[0][:, :3], -back[0][:, :3], atol=1e-4)


def test_of_several_demonstrations_each_has_its_anchor_and_its_end():
    bank = bank_of(demonstration(way(HOME, CUP)), demonstration(way(HOME, PLACE)))
    bank.task_id.zero_()
    bank = bank.concatenated()
    replay = AnchoredReplay(bank, FIELDS)
    begin, row = torch.tensor([-1]), torch.tensor([0])
    for place, first in ((CUP, 0), (PLACE, STEPS)):
        state = demonstration(way(HOME, place))["observation"][4:5]
        assert first <= replay(state, row, begin)[1] <= first + SKIP
    end = demonstration(way(HOME, CUP))["observation"][-1:]
    assert replay(end, row, torch.tensor([STEPS - 1]))[1] == STEPS - 1


def test_without_a_prompt_it_stands_still():
    replay = AnchoredReplay(bank_of(demonstration(way(HOME, CUP))), FIELDS)
    action, progress = replay(torch.rand(1, 39), torch.tensor([-1]), torch.tensor([-1]))
    assert not action.any()
    assert progress == -1


def test_any_batch_shape():
    trajectory = demonstration(way(HOME, CUP))
    replay = AnchoredReplay(bank_of(trajectory), FIELDS)
    states, row, begin = trajectory["observation"][:4], torch.zeros(4).long(), -torch.ones(4).long()
    actions, steps = replay(states, row, begin)
    for shape in ((2, 2), (4, 1)):
        found = replay(states.reshape(*shape, -1), row.reshape(shape), begin.reshape(shape))
        assert torch.equal(found[0], actions.reshape(*shape, 4))
        assert torch.equal(found[1], steps.reshape(shape))
    assert torch.equal(replay(states[2], row[2], begin[2])[0], actions[2])


def test_it_starts_over_wherever_the_hand_is():
    trajectory = demonstration(way(HOME, CUP))
    trajectory["observation"][:, slice(*FIELDS["gripper_opening"])] = 1.0
    replay = AnchoredReplay(bank_of(trajectory), FIELDS)
    observation, row = trajectory["observation"][-1:].clone(), torch.tensor([0])
    observation[:, slice(*FIELDS["gripper_opening"])] = 0.2
    progress, steps = torch.tensor([START_OVER]), []
    for _ in range(2 * STEPS):
        action, progress = replay(observation, row, progress)
        steps.append(progress.item())
        if progress < 0:  # towards the beginning, and open
            assert action[0, 3] == -1 or observation[0, 3] > 0.8
        observation[:, :3] += 0.01 * action[:, :3]
        observation[:, 3] = (observation[:, 3] - 0.1 * action[:, 3]).clamp(max=1.0)
    begun = steps.index(0)
    assert set(steps[:begun]) == {START_OVER}
    assert steps[begun:] == sorted(steps[begun:])
    assert torch.allclose(observation[0, :3], torch.tensor(CUP), atol=0.02)
