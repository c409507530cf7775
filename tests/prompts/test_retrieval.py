import copy

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts.retrieval import (
    METAWORLD_FRAME,
    FrameSpec,
    PromptRetrieval,
    RelativeFrame,
)
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError, DataError

FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]


def reference(bank, observation, row, lookaheads, gain=20.0):
    """The same context, one transition at a time and without any algebra."""

    def frame(o):
        return torch.cat([o[:3] - o[4:7], o[4:7] - o[36:39], o[3:4]])

    def pull(now, later, anchor):
        way = (later[:3] - later[anchor]) - (now[:3] - now[anchor])
        return (gain * way).clamp(-1, 1)

    prompt = bank.prompts[row][bank.prompts[row]["mask"]]
    weights = torch.tensor([10.0] * 3 + [5.0] * 3 + [1.0])
    now = frame(observation)
    frames = [frame(o) for o in prompt["observation"]]
    distances = [(weights * (now - f)).norm() for f in frames]
    i = min(range(len(frames)), key=lambda k: distances[k])
    parts = [prompt["action"][i], 10 * (now - frames[i])]
    thing, goal = slice(4, 7), slice(36, 39)
    later = frames[min(i + lookaheads[0], len(frames) - 1)]
    way = frames[i][:3] - now[:3]
    carried = (later - frames[i])[3:6].norm() > 0.005
    if carried:
        way = way + frames[i][3:6] - now[3:6]
    play = prompt["action"][i] + torch.cat([gain * way, torch.zeros(1)])
    parts += [play.clamp(-1, 1), (gain * way).clamp(-1, 1), carried.float()[None]]
    for number, lookahead in enumerate(lookaheads):
        j = min(i + lookahead, len(frames) - 1)
        later = prompt["observation"][j]
        parts += [10 * (frames[j] - frames[i]), pull(observation, later, thing), frames[j][6:]]
        if number:
            parts.append(prompt["action"][j])
        else:
            known = pull(observation, later, goal)
    parts.append(torch.stack([now[6], frames[i][6]]))
    parts.append(torch.tensor([i / len(frames), min(distances[i].item(), 3.0)]))
    return torch.cat([*parts, known])


@pytest.mark.parametrize("lookaheads", [(3,), (1, 4, 40)])
@pytest.mark.parametrize("length", [16, 200])  # cut, and padded
def test_against_one_at_a_time(dataset, length, lookaheads):
    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=lookaheads)
    rows = torch.randint(len(bank), (40,))
    observation = dataset.transitions["observation"][:: len(dataset.transitions) // 40][:40]
    context = retrieval(observation, rows)
    assert context.shape == (40, retrieval.features)
    expected = torch.stack(
        [reference(bank, o, r, lookaheads) for o, r in zip(observation, rows, strict=True)]
    )
    torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("length", [16, 200])  # cut, and padded in between
def test_of_concatenated_prompts_the_nearest_demonstration_is_read(dataset, length):
    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    task = int(bank.task_id[0])
    rows = bank.rows_of(task)
    concatenated = bank.concatenated()
    assert concatenated.length == len(rows) * length
    assert concatenated.task_id.tolist() == bank.task_id.unique().tolist()
    data = dataset.transitions
    observation = data["observation"][data["task_id"].squeeze(-1) == task][::2][:60]
    options = {"lookaheads": (1, 40)}
    one = PromptRetrieval(concatenated, METAWORLD_FRAME, FIELDS, **options)
    each = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, **options)
    context = one(observation, torch.full((len(observation),), concatenated.rows_of(task).item()))
    alone = torch.stack([each(observation, row.expand(len(observation))) for row in rows])
    best = alone[:, :, each.parts["distance"].start].argmin(0)
    expected = alone[best, torch.arange(len(observation))]
    torch.testing.assert_close(context, expected, rtol=1e-3, atol=1e-2)
    assert len(best.unique()) > 1


def test_a_prompts_own_state_is_found_again(bank):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    observation = bank.prompts["observation"][2, 5]
    context = retrieval(observation, torch.tensor(2))
    assert torch.equal(context[:4], bank.prompts["action"][2, 5])
    # On the prompt's own way there is nothing to correct.
    torch.testing.assert_close(
        context[retrieval.parts["suggested_action"]], context[:4], rtol=0, atol=1e-5
    )
    distance = context[retrieval.parts["distance"]]
    torch.testing.assert_close(distance, torch.zeros(1), atol=1e-3, rtol=0)


def test_it_does_not_see_where_things_are(bank):
    """Moving hand, object and goal together changes nothing."""
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    observation = bank.prompts["observation"][:, 3]
    moved = observation.clone()
    for name in ("hand_position", "object_1_position", "goal_position"):
        moved[:, slice(*FIELDS[name])] += torch.tensor([0.3, -0.2, 0.1])
    rows = torch.arange(len(bank)).flip(0)
    torch.testing.assert_close(
        retrieval(moved, rows), retrieval(observation, rows), rtol=1e-3, atol=1e-3
    )


def test_a_missing_field_is_named(bank):
    with pytest.raises(ConfigError, match="goal_position"):
        PromptRetrieval(
            bank, METAWORLD_FRAME, {k: v for k, v in FIELDS.items() if k != "goal_position"}
        )


def test_parts_cover_the_context_in_order(bank):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=(2, 5))
    stops = [0, *(part.stop for part in retrieval.parts.values())]
    assert [part.start for part in retrieval.parts.values()] == stops[:-1]
    assert stops[-1] == retrieval.features
    assert list(retrieval.parts)[-1] == "goal_correction"


def test_without_objects_the_normalised_state_is_compared(bank):
    """A family without effector: no pulls, and an entry counts by its spread."""
    spec = FrameSpec(values=("state",), weights=(None,))
    retrieval = PromptRetrieval(bank, spec, {"state": (0, 39)})
    observation = bank.prompts["observation"][1, 7]
    stretched = bank.prompts.clone()
    unit = torch.logspace(-2, 2, 39)
    stretched["observation"] = stretched["observation"] * unit
    other = TrajectoryPromptBank(stretched, bank.task_id, bank.trajectory_id)
    row = torch.tensor([1])
    again = PromptRetrieval(other, spec, {"state": (0, 39)})
    assert retrieval.nearest(observation[None], row).item() == 7
    assert again.nearest((observation * unit)[None], row).item() == 7
    torch.testing.assert_close(
        again(bank.prompts["observation"][2] * unit, torch.full((16,), 1)),
        retrieval(bank.prompts["observation"][2], torch.full((16,), 1)),
        rtol=1e-2,
        atol=1e-2,
    )
    parts = retrieval.parts
    assert parts["goal_correction"].start == parts["goal_correction"].stop
    assert parts["ahead_3"].stop - parts["ahead_3"].start == 39 + 39
    assert parts["correction"].start == parts["object_is_moving"].stop
    assert retrieval(observation, torch.tensor(1)).shape == (retrieval.features,)


def test_lookaheads_are_checked(bank):
    with pytest.raises(ConfigError, match="lookaheads"):
        PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=(0,))


def test_what_is_carried_is_led_to_its_place_by_the_goal():
    """The hand holds the thing, 3 cm short of where the demonstration's stood from the goal."""
    steps = torch.zeros(1, 4, 39)
    steps[0, :, 36] = 1.0
    steps[0, :, 0] = steps[0, :, 4] = torch.tensor([0.0, 0.2, 0.4, 0.6])
    entries = {
        "observation": steps,
        "action": torch.zeros(1, 4, 4),
        "mask": torch.ones(1, 4, dtype=torch.bool),
    }
    bank = TrajectoryPromptBank(TensorDict(entries, [1, 4]), torch.tensor([0]), torch.tensor([0]))
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=(1,))
    now = steps[0, 1].clone()
    now[[0, 4]] -= 0.03
    parts, context = retrieval.parts, retrieval(now, torch.tensor(0))
    assert context[parts["object_is_moving"]].item() == 1
    torch.testing.assert_close(
        context[parts["suggested_action"]], torch.tensor([0.6, 0.0, 0.0, 0.0])
    )
    steps[0, :, 4] = 0.7  # now the thing stands still, and it is the hand's place that counts
    still = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=(1,))
    now = steps[0, 1].clone()
    now[36] += 0.01
    context = still(now, torch.tensor(0))
    assert context[parts["object_is_moving"]].item() == 0
    torch.testing.assert_close(context[parts["suggested_action"]], torch.zeros(4))


def test_prompts_follow_the_module_and_stay_out_of_its_state(bank):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    assert not retrieval.state_dict()
    observation, row = bank.prompts["observation"][:, 3], torch.arange(len(bank))
    expected = retrieval(observation, row)
    double = copy.deepcopy(retrieval).double()(observation, row)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-3)
    elsewhere = copy.deepcopy(retrieval).to("meta")  # as any other device: nothing stays behind
    assert {tensor.device.type for tensor in elsewhere.buffers()} == {"meta"}
    context = elsewhere(observation.to("meta"), row.to("meta"))
    assert context.device.type == "meta"
    assert context.shape == expected.shape


@pytest.mark.gpu
def test_contexts_on_a_gpu_are_those_of_the_cpu(bank):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    observation, row = bank.prompts["observation"][:, 3], torch.arange(len(bank))
    expected = retrieval(observation, row)
    context = retrieval.cuda()(observation.cuda(), row.cuda())
    torch.testing.assert_close(context.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [17, 45])
def test_an_observation_of_another_width_is_named(bank, width):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    with pytest.raises(DataError, match=f"has {width} entries, the relative frame reads 39"):
        retrieval(torch.zeros(2, width), torch.zeros(2, dtype=torch.int64))


def test_numbers_are_float32_whatever_the_default_and_the_observations_are(bank):
    expected = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    observation, row = bank.prompts["observation"][:, 3], torch.arange(len(bank))
    torch.set_default_dtype(torch.float64)
    try:
        retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
        assert torch.equal(retrieval(observation, row), expected(observation, row))
        assert torch.equal(retrieval(observation.double(), row), expected(observation, row))
    finally:
        torch.set_default_dtype(torch.float32)


SMALL_FIELDS = {"hand": (0, 2), "cup": (2, 4), "goal": (4, 6), "grip": (6, 7), "joints": (7, 10)}
SPEC = FrameSpec("hand", ("cup", "goal"), ("grip", "joints"), (10.0, 5.0, 1.0, None), unit=0.5)


def test_positions_are_seen_from_each_other_and_values_beside_them():
    observations = torch.randn(50, 10)
    frame = RelativeFrame(SPEC, SMALL_FIELDS, observations)
    hand, cup, goal = observations[:, :2], observations[:, 2:4], observations[:, 4:6]
    joints = observations[:, 7:]
    joints = (joints - joints.mean(0)) / joints.std(0)
    expected = torch.cat([hand - cup, cup - goal, observations[:, 6:7], joints], -1)
    torch.testing.assert_close(frame(observations), expected)
    from_cup, from_goal = frame.from_anchors(expected)
    torch.testing.assert_close(from_cup, hand - cup)
    torch.testing.assert_close(from_goal, hand - goal)
    torch.testing.assert_close(frame.values(expected), expected[:, 4:])


def test_weights_and_scales():
    observations = torch.randn(500, 10)
    observations[:, 8] = 0.7  # what never changes counts nothing
    frame = RelativeFrame(SPEC, SMALL_FIELDS, observations)
    assert frame.weights.tolist() == [10, 10, 5, 5, 1, 1, 1, 1]
    assert frame.scale.tolist() == [2, 2, 2, 2, 2, 1, 1, 1]
    assert (frame(torch.randn(5, 10))[:, 6] == 0).all()


def test_moving_everything_together_changes_nothing():
    observation = torch.randn(39)
    frame = RelativeFrame(METAWORLD_FRAME, FIELDS, observation[None])
    moved = observation.clone()
    for name in ("hand_position", "object_1_position", "goal_position"):
        moved[slice(*FIELDS[name])] += torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(frame(moved), frame(observation), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "compares nothing"),
        ({"effector": "hand"}, "both an effector and anchors"),
        ({"anchors": ("cup",), "weights": (1.0,)}, "both an effector and anchors"),
        ({"values": ("grip",)}, "has 0 weights: give 1"),
        ({"effector": "hand", "anchors": ("cup",), "weights": (None,)}, "by their spread"),
        ({"values": ("grip",), "weights": (1.0,), "unit": 0.0}, "unit is 0"),
    ],
)
def test_a_frame_without_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FrameSpec(**arguments)


def test_a_frame_that_does_not_fit_the_observation_is_refused():
    with pytest.raises(ConfigError, match="'cup', which the observation lacks: it has hand"):
        SPEC.sizes({"hand": (0, 2)})
    with pytest.raises(ConfigError, match="positions must have one width"):
        SPEC.sizes(SMALL_FIELDS | {"goal": (4, 7)})
