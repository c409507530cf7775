import copy
import dataclasses
import itertools

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts.demonstrations import carried_distances, held_grips
from llmdpd_torchrl.prompts.frames import FrameSpec
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL, RetrievalSpec
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError, DataError

FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]
POSITIONS = ("hand_position", "object_1_position", "object_2_position", "goal_position")
PLAIN = RetrievalSpec(frames=(FrameSpec(values=("state",), weights=(None,)),))
ONE = RetrievalSpec(
    frames=(FrameSpec("hand_position", ("object_1_position", "goal_position"), (), (10.0, 5.0)),),
    lookaheads=(1,),
)


def make(bank, spec=METAWORLD_RETRIEVAL, **changes):
    return PromptRetrieval(bank, dataclasses.replace(spec, **changes), FIELDS)


def at(observation, name):
    return observation[slice(*FIELDS[name])]


def reference(spec, prompt, observation):
    """A context's parts, one frame and one step at a time, and without any algebra."""
    steps, actions, usable = prompt["observation"], prompt["action"], prompt["has_action"]
    actions = [a if u else torch.zeros(4) for a, u in zip(actions, usable, strict=True)]
    parts, flags, suggestions, grips = {}, [], [], []
    for number, frame in enumerate(spec.frames):

        def relations(o, frame=frame):
            return [at(o, first) - at(o, second) for first, second in frame.relations]

        def difference(one, other, frame=frame, relations=relations):
            pairs = list(zip(relations(one), relations(other), strict=True))
            pairs += [(at(one, name), at(other, name)) for name in frame.values]
            weighted = zip(frame.weights, pairs, strict=True)
            return torch.cat([weight * (a - b) for weight, (a, b) in weighted]).norm()

        distances = [difference(observation, o).item() for o in steps]
        i = min(range(len(steps)), key=distances.__getitem__)
        now, there = relations(observation), relations(steps[i])
        error = [10 * (a - b) for a, b in zip(now, there, strict=True)]
        error += [10 * (at(observation, name) - at(steps[i], name)) for name in frame.values]
        steps_ahead = [min(i + k, len(steps) - 1) for k in range(1, max(spec.lookaheads) + 1)]

        def is_gripped(j, frame=frame):
            values = [at(observation, name) - at(steps[j], name) for name in frame.values]
            return not spec.grip or torch.cat(values).abs().max() < 0.3

        reach = max(1, len(list(itertools.takewhile(is_gripped, steps_ahead))))
        first = min(i + min(spec.lookaheads[0], reach), len(steps) - 1)
        off = there[0] - now[0]
        for k in range(1, len(now)):  # while the prompt moves an anchor, the next one counts too
            if (relations(steps[first])[k] - there[k]).norm() > 0.005:
                off = off + there[k] - now[k]
        said = [actions[i], torch.cat(error).clamp(-5, 5), (20 * off).clamp(-1, 1)]
        said += [at(steps[i], name) for name in frame.values]
        left = min(len(steps) - 1 - i, 20) / 20
        said.append(torch.tensor([i / len(steps), left, min(distances[i], 3.0)]))
        suggestion = (actions[i][:3] + 20 * off).clamp(-1, 1)
        suggestions.append(suggestion if usable[i] else torch.zeros(3))

        grip = actions[i][3:]
        if spec.grip:
            openings = torch.stack([at(o, "gripper_opening") for o in steps]).mT
            moving = [spec.frames[0].effector, *spec.objects][:2]
            carried = carried_distances(
                *(torch.stack([at(o, k) for o in steps])[None] for k in moving)
            )
            held = held_grips(openings, carried)[0, i]
            errors = [at(observation, name) - at(steps[i], name) for name in frame.values]
            grip = (held + spec.grip * torch.cat(errors)).clamp(-1, 1)
        grips += [grip] * (1 + len(spec.lookaheads))
        flags += [usable[i].float(), *[torch.tensor(1.0)] * len(spec.lookaheads)]
        for lookahead in spec.lookaheads:
            j = min(i + min(lookahead, reach), len(steps) - 1)
            motions = [10 * (relations(steps[j])[0] - there[0])]
            motions += [10 * (at(steps[j], name) - at(steps[i], name)) for name in spec.objects]
            said += [*motions, actions[j], *[at(steps[j], name) for name in frame.values]]
            said += [at(steps[j], name) - at(steps[i], name) for name in frame.values]
            said += [motion.norm()[None] for motion in motions]
            way = 20 * (relations(steps[j])[0] - now[0])
            suggestions.append(way / max(way.norm().item(), 1.0))
        parts[f"frame_{number}"] = torch.cat(said)
    state = [at(observation, name) for name in spec.frames[0].values]
    if spec.previous:
        effector = spec.frames[0].effector
        starts = [FIELDS[name][0] for name in (effector, *spec.objects)]
        moved = [
            100 * (observation[k : k + 3] - observation[k + spec.previous :][:3]) for k in starts
        ]
        moved = [motion.clamp(-5, 5) for motion in moved]
        state += [*moved, torch.stack([motion.norm() for motion in moved])]
    parts["state"] = torch.cat(state) if state else torch.zeros(0)
    parts["usable"] = torch.stack(flags)
    parts["suggestions"] = torch.cat(suggestions)
    parts["grips"] = torch.cat(grips)
    return parts


@pytest.fixture
def observations(dataset):
    return dataset.transitions["observation"][:: len(dataset.transitions) // 40][:40]


@pytest.mark.parametrize(
    "spec",
    [
        METAWORLD_RETRIEVAL,
        dataclasses.replace(METAWORLD_RETRIEVAL, lookaheads=(1, 4, 40)),
        dataclasses.replace(METAWORLD_RETRIEVAL, objects=("object_2_position",), previous=0),
        dataclasses.replace(METAWORLD_RETRIEVAL, grip=0.0),
        ONE,  # with neither values nor objects
    ],
)
@pytest.mark.parametrize("length", [16, 200])  # cut, and padded
def test_against_one_at_a_time(dataset, observations, length, spec):
    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    bank.prompts["has_action"] = bank.prompts["mask"] & (torch.rand(len(bank), length) < 0.7)
    retrieval = make(bank, spec)
    rows = torch.randint(len(bank), (40,))
    context = retrieval(observations, rows)
    assert context.shape == (40, retrieval.features)
    for found, observation, row in zip(context, observations, rows, strict=True):
        prompt = bank.prompts[row]
        expected = reference(spec, prompt[prompt["mask"]], observation)
        assert list(expected) == list(retrieval.layout.parts)
        for name, part in retrieval.layout.parts.items():
            torch.testing.assert_close(
                found[part], expected[name], rtol=1e-4, atol=2e-3, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize("length", [16, 200])  # cut, and padded in between
@pytest.mark.parametrize("number", range(len(METAWORLD_RETRIEVAL.frames)))
def test_of_concatenated_prompts_the_nearest_demonstration_is_read(dataset, length, number):
    """Each frame on its own: the context is that of one demonstration, up to its last step."""
    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    task = int(bank.task_id[0])
    rows = bank.rows_of(task)
    concatenated = bank.concatenated()
    data = dataset.transitions
    observation = data["observation"][data["task_id"].squeeze(-1) == task][::2][:60]
    options = {"frames": METAWORLD_RETRIEVAL.frames[number : number + 1], "lookaheads": (1, 40)}
    one, each = make(concatenated, **options), make(bank, **options)
    context = one(observation, torch.full((len(observation),), concatenated.rows_of(task).item()))
    alone = torch.stack([each(observation, row.expand(len(observation))) for row in rows])
    # Distances are what an empty spec's frame says just before the lookaheads.
    relations, values = options["frames"][0].sizes(FIELDS)
    distance = 4 + relations + values + 3 + values + 2
    best = alone[:, :, distance].argmin(0)
    expected = alone[best, torch.arange(len(observation))]
    torch.testing.assert_close(context, expected, rtol=1e-3, atol=1e-2)
    assert len(best.unique()) > 1


def test_a_prompts_own_state_is_found_again(bank):
    retrieval = make(bank)
    observation = bank.prompts["observation"][2, 5]
    context = retrieval(observation, torch.tensor(2))
    action = bank.prompts["action"][2, 5]
    suggestions = context[retrieval.layout.parts["suggestions"]].reshape(4, 3, 3)
    for number, suggestion in enumerate(suggestions[:, 0]):
        start = retrieval.layout.parts[f"frame_{number}"].start
        assert torch.equal(context[start : start + 4], action)
        # On the prompt's own path there is nothing to correct.
        torch.testing.assert_close(suggestion, action[:3].clamp(-1, 1), rtol=0, atol=1e-5)


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
    retrieval = make(bank, ONE)
    suggestion = retrieval.layout.parts["suggestions"].start
    now = steps[0, 1].clone()
    now[[0, 4]] -= 0.03
    context = retrieval(now, torch.tensor(0))
    torch.testing.assert_close(context[suggestion : suggestion + 3], torch.tensor([0.6, 0.0, 0.0]))
    steps[0, :, 4] = 0.7  # now the thing stands still, and it is the hand's place that counts
    now = steps[0, 1].clone()
    now[36] += 0.01
    context = make(bank, ONE)(now, torch.tensor(0))
    torch.testing.assert_close(context[suggestion : suggestion + 3], torch.zeros(3))


def test_it_does_not_see_where_things_are(bank, observations):
    """Moving the scene, now and one step ago, changes nothing."""
    prompts = bank.prompts.clone()
    prompts["observation"][..., slice(*FIELDS["object_2_position"])] = torch.rand(3)
    retrieval = make(TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id))
    moved = observations.clone()
    shift = torch.tensor([0.3, -0.2, 0.1])
    for name in POSITIONS:
        moved[:, slice(*FIELDS[name])] += shift
        if name != "goal_position":
            start = FIELDS[name][0] + METAWORLD_RETRIEVAL.previous
            moved[:, start : start + 3] += shift
    rows = torch.arange(len(observations)) % len(bank)
    torch.testing.assert_close(
        retrieval(moved, rows), retrieval(observations, rows), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_turning_the_scene_turns_the_vectors_and_nothing_else(bank, mirrored):
    angle = torch.tensor(0.7)
    turn = torch.eye(3)
    turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    if mirrored:
        turn = turn @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.linalg.det(turn).item() == pytest.approx(-1 if mirrored else 1)

    def turned(observation):
        result = observation.clone()
        for name in POSITIONS:
            starts = [FIELDS[name][0]]
            if name != "goal_position":
                starts.append(starts[0] + METAWORLD_RETRIEVAL.previous)
            for start in starts:
                result[..., start : start + 3] = observation[..., start : start + 3] @ turn.T
        return result

    prompts = bank.prompts.clone()
    # Everything moves, on short ways, so that nothing is clipped: that does not turn.
    torch.manual_seed(0)
    prompts["observation"] = (0.004 * torch.randn(prompts["observation"].shape)).cumsum(1)
    prompts["action"] = 0.2 * torch.randn(prompts["action"].shape).clamp(-2, 2)
    before = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
    prompts = prompts.clone()
    prompts["observation"] = turned(prompts["observation"])
    prompts["action"][..., :3] = prompts["action"][..., :3] @ turn.T
    after = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
    observation = before.prompts["observation"][:, 5].clone()
    observation[:, :18] += 2e-4 * torch.randn(len(bank), 18)
    observation[:, 18:36] = observation[:, :18] + 0.004 * torch.randn(len(bank), 18)
    row = torch.arange(len(bank))
    expected, found = make(before)(observation, row), make(after)(turned(observation), row)
    columns = [[*range(part.start, part.stop)] for part in make(before).layout.vectors]
    assert {len(part) for part in columns} == {3}
    assert len({i for part in columns for i in part}) == 3 * len(columns)
    for part in columns:
        assert not torch.allclose(found[:, part], expected[:, part], rtol=0, atol=1e-3)
        expected[:, part] = expected[:, part] @ turn.T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_parts_cover_the_context_in_order(bank):
    retrieval = make(bank)
    layout = retrieval.layout
    assert [part.start for part in layout.parts.values()] == [
        0,
        *[part.stop for part in layout.parts.values()][:-1],
    ]
    names = [*(f"frame_{n}" for n in range(4)), "state", "usable", "suggestions", "grips"]
    assert list(layout.parts) == names
    assert layout.parts["grips"].stop == layout.width == retrieval.features
    assert (layout.moves, layout.grips, layout.suggestions) == (3, 1, 4 * (1 + 2))
    usable, suggestions = layout.parts["usable"], layout.parts["suggestions"]
    assert usable.stop - usable.start == layout.suggestions
    assert suggestions.stop - suggestions.start == layout.suggestions * layout.moves


def test_without_usable_actions_nothing_depends_on_them(bank, observations):
    rows = torch.arange(len(observations)) % len(bank)
    contexts = []
    for seed in range(2):
        prompts = bank.prompts.clone()
        prompts["action"] = torch.randn(
            prompts["action"].shape, generator=torch.Generator().manual_seed(seed)
        )
        prompts["has_action"] = torch.zeros_like(prompts["mask"])
        changed = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
        contexts.append(make(changed)(observations, rows))
    assert torch.equal(*contexts)
    layout = make(bank).layout
    flags = contexts[0][:, layout.parts["usable"]].reshape(-1, 4, 3)
    assert (flags[..., 0] == 0).all()
    assert (flags[..., 1:] == 1).all()
    suggestions = contexts[0][:, layout.parts["suggestions"]].reshape(-1, 4, 3, 3)
    assert (suggestions[:, :, 0] == 0).all()
    assert (suggestions[:, :, 1:] != 0).any(-1).all()


def test_without_a_prompt_the_context_is_zero(bank, observations):
    retrieval = make(bank)
    assert (retrieval(observations, torch.full((40,), -1)) == 0).all()
    rows = torch.arange(40) % 3 - 1
    context = retrieval(observations, rows)
    assert torch.equal((context == 0).all(-1), rows < 0)
    empty = TrajectoryPromptBank.empty(length=5, observation_dim=39, action_dim=4)
    for row in (-1, 0):
        context = make(empty)(observations, torch.full((40,), row))
        assert context.isfinite().all()


def test_batches_have_any_shape(bank, observations):
    retrieval, rows = make(bank), torch.arange(40) % len(bank)
    expected = retrieval(observations, rows)
    found = retrieval(observations.reshape(2, 20, 39), rows.reshape(2, 20))
    assert torch.equal(found.reshape(40, -1), expected)
    torch.testing.assert_close(retrieval(observations[0], rows[0]), expected[0])


def test_without_effector_the_normalised_state_is_compared(bank):
    """No corrections, the action as the one suggestion, and an entry counts by its spread."""
    fields = {"state": (0, 39)}
    retrieval = PromptRetrieval(bank, PLAIN, fields)
    stretched = bank.prompts.clone()
    unit = torch.logspace(-2, 2, 39)
    stretched["observation"] = stretched["observation"] * unit
    other = TrajectoryPromptBank(stretched, bank.task_id, bank.trajectory_id)
    again = PromptRetrieval(other, PLAIN, fields)
    observation = bank.prompts["observation"][1]
    row = torch.full((16,), 1)
    context = retrieval(observation, row)
    layout = retrieval.layout
    assert torch.equal(context[:, layout.parts["suggestions"]], bank.prompts["action"][1])
    assert (layout.vectors, layout.moves, layout.suggestions) == ([], 4, 1)
    torch.testing.assert_close(again(observation * unit, row), context, rtol=1e-2, atol=1e-2)
    assert context.shape == (16, retrieval.features)


def test_a_state_is_standardised_by_its_own_prompt_alone(bank):
    observation = bank.prompts["observation"][1][:5]
    both = PromptRetrieval(bank, PLAIN, {"state": (0, 39)})
    one = TrajectoryPromptBank(bank.prompts[1:2], bank.task_id[1:2], bank.trajectory_id[1:2])
    alone = PromptRetrieval(one, PLAIN, {"state": (0, 39)})
    expected = both(observation, torch.full((5,), 1))
    torch.testing.assert_close(alone(observation, torch.zeros(5).long()), expected)


def test_what_does_not_change_in_a_prompt_counts_nothing(bank):
    prompts = bank.prompts.clone()
    prompts["observation"][..., 7] = 0.7
    fixed = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
    retrieval = PromptRetrieval(fixed, PLAIN, {"state": (0, 39)})
    observation, row = prompts["observation"][:, 3], torch.arange(len(fixed))
    expected = retrieval(observation, row)
    observation[:, 7] += 5.0
    assert torch.equal(retrieval(observation, row), expected)


def test_prompts_follow_the_module_and_stay_out_of_its_state(bank):
    retrieval = make(bank)
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
    retrieval = make(bank)
    observation, row = bank.prompts["observation"][:, 3], torch.arange(len(bank))
    expected = retrieval(observation, row)
    context = retrieval.cuda()(observation.cuda(), row.cuda())
    torch.testing.assert_close(context.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_numbers_are_float32_whatever_the_default_and_the_observations_are(bank):
    expected = make(bank)
    observation, row = bank.prompts["observation"][:, 3], torch.arange(len(bank))
    torch.set_default_dtype(torch.float64)
    try:
        retrieval = make(bank)
        assert torch.equal(retrieval(observation, row), expected(observation, row))
        context = retrieval(observation.double(), row)
        assert context.dtype == torch.float32
        assert torch.equal(context, expected(observation, row))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("width", [17, 45])
def test_an_observation_of_another_width_is_named(bank, width):
    with pytest.raises(DataError, match=f"has {width} entries, the relative frame reads 39"):
        make(bank)(torch.zeros(2, width), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", ["hand_position", "goal_position", "object_2_position"])
def test_a_missing_field_is_named(bank, name):
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(ConfigError, match=f"'{name}', which the observation lacks"):
        PromptRetrieval(bank, METAWORLD_RETRIEVAL, fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": ()}, r"network\.retrieval\.frames"),
        ({"lookaheads": ()}, r"network\.retrieval\.lookaheads"),
        ({"lookaheads": (0,)}, r"network\.retrieval\.lookaheads\[0\] is 0"),
        ({"previous": -1}, r"network\.retrieval\.previous is -1"),
        ({"frames": (*ONE.frames, *PLAIN.frames)}, "one effector, or all none"),
        ({"frames": PLAIN.frames}, "frames without effector"),
        ({"previous": 26}, r"previous is 26: entry 13 has none .* observation of 39"),
        ({"objects": ("gripper_opening",)}, "positions must have one width"),
        ({"objects": ("cup",)}, "'cup', which the observation lacks"),
    ],
)
def test_a_spec_without_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(METAWORLD_RETRIEVAL, **changes).layout(FIELDS, 4)


def test_actions_are_at_least_as_wide_as_positions():
    with pytest.raises(ConfigError, match="positions have 3 entries and actions 2"):
        METAWORLD_RETRIEVAL.layout(FIELDS, 2)
    with pytest.raises(ConfigError, match=r"grip is 5\.0: a frame has 1 values and an action 2"):
        METAWORLD_RETRIEVAL.layout(FIELDS, 5)
