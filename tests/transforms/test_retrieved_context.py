import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.prompts.retrieval import METAWORLD_FRAME, FrameSpec, PromptRetrieval
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.transforms import (
    ContextAugmentation,
    ObservationGateTransform,
    RetrievedContextTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.transforms.retrieved_context import random_rotations


@pytest.fixture
def retrieval(bank):
    return PromptRetrieval(bank, METAWORLD_FRAME, METAWORLD_OBSERVATION_LAYOUT["fields"])


def sampled(bank, rows=6):
    generator = torch.Generator().manual_seed(0)
    observation = torch.rand(2, rows, 39, generator=generator)
    return TensorDict(
        {
            "observation": observation[0],
            "action": torch.rand(rows, 4, generator=generator) * 2 - 1,
            "task_id": torch.arange(rows).unsqueeze(-1) % 2,
            "prompt": {"trajectory_index": torch.arange(rows).unsqueeze(-1) % len(bank)},
            "next": {"observation": observation[1]},
        },
        [rows],
    )


def transforms(retrieval):
    return [
        RetrievedContextTransform(retrieval),
        ObservationGateTransform([0, 1], state_visible_prob=0.5),
        ContextAugmentation(retrieval),
    ]


def test_all_tensors_move_with_the_transforms(retrieval, bank):
    data = sampled(bank).to("meta")  # as any other device: what stays behind would fail
    for transform in transforms(copy.deepcopy(retrieval)):
        data = transform.to("meta")(data)
        assert {tensor.device.type for tensor in transform.buffers()} <= {"meta"}
    assert data["retrieved_context"].shape == (6, retrieval.features)
    assert data["prompt", "observation_gate"].shape == (6, 1)


def test_nothing_frozen_is_saved(retrieval):
    assert not any(transform.state_dict() for transform in transforms(retrieval))


def test_contexts_are_float32_of_observations_of_any_number_type(retrieval, bank):
    data = sampled(bank)
    double = data.clone()
    for key in ("observation", ("next", "observation")):
        double[key] = double[key].double()
    transform = RetrievedContextTransform(retrieval)
    for key in ("retrieved_context", ("next", "retrieved_context")):
        assert torch.equal(transform(data.clone())[key], transform(double.clone())[key])


@pytest.mark.gpu
def test_a_batch_on_a_gpu(retrieval, bank):
    data = sampled(bank).to("cuda")
    expected = RetrievedContextTransform(retrieval)(sampled(bank))["retrieved_context"]
    for transform in transforms(copy.deepcopy(retrieval)):
        data = transform.to("cuda")(data)
        if isinstance(transform, RetrievedContextTransform):
            torch.testing.assert_close(
                data["retrieved_context"].cpu(), expected, rtol=1e-3, atol=1e-3
            )
    assert data["action"].device.type == "cuda"


FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]


def turn(observation, rotation):
    """The whole world, about the origin."""
    turned = observation.clone()
    for name in ("hand_position", "object_1_position", "goal_position"):
        part = slice(*FIELDS[name])
        turned[..., part] = observation[..., part] @ rotation.T
    return turned


def turn_actions(action, rotation):
    return torch.cat([action[..., :3] @ rotation.T, action[..., 3:]], -1)


@pytest.mark.parametrize("lookaheads", [(3,), (1, 4)])
def test_the_columns_are_those_that_turn_with_the_world(bank, lookaheads):
    """Against a world, and a demonstration in it, that was turned before."""
    rotation = random_rotations(1, 3)[0]
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS, lookaheads=lookaheads)
    turned = bank.prompts.clone()
    turned["observation"] = turn(turned["observation"], rotation)
    turned["action"] = turn_actions(turned["action"], rotation)
    other = TrajectoryPromptBank(turned, bank.task_id, bank.trajectory_id)
    again = PromptRetrieval(other, METAWORLD_FRAME, FIELDS, lookaheads=lookaheads)
    # A tenth of a millimetre off the way, so that no pull is clipped (that does not turn).
    observation = bank.prompts["observation"][:, 5].clone()
    observation[:, :3] += 1e-4 * torch.randn(len(bank), 3)
    row = torch.arange(len(bank))
    context = retrieval(observation, row)
    expected = again(turn(observation, rotation), row)
    vectors, tails = retrieval.equivariant_columns()
    for part in vectors:
        context[:, part] = context[:, part] @ rotation.T
    clipped = torch.zeros(retrieval.features, dtype=torch.bool)
    for lookahead in lookaheads:  # pulls towards later steps, and what is made of them, are clipped
        part = retrieval.parts[f"ahead_{lookahead}"]
        clipped[part.start + 7 : part.start + 10] = True
    clipped[retrieval.parts["goal_correction"]] = clipped[retrieval.parts["suggested_action"]] = (
        True
    )
    torch.testing.assert_close(context[:, ~clipped], expected[:, ~clipped], rtol=1e-3, atol=1e-3)
    everything = sorted(i for part in (*vectors, *tails) for i in range(part.start, part.stop))
    assert len(everything) == len(set(everything))
    assert len(tails) == 2 + len(lookaheads) - 1


def batch_of(dataset, bank, probability):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    before = Compose(
        TrajectoryPromptTransform(bank),
        RetrievedContextTransform(retrieval),
        ObservationGateTransform([], state_visible_prob=probability),
    )
    batch = before(dataset.transitions[:200].clone())
    return retrieval, batch, ContextAugmentation(retrieval)(batch.clone())


def test_context_and_action_turn_together_where_the_state_is_hidden(dataset, bank):
    torch.manual_seed(0)
    retrieval, before, after = batch_of(dataset, bank, 0.5)
    is_open = before["prompt", "observation_gate"].squeeze(-1).bool()
    for key in ("retrieved_context", ("next", "retrieved_context"), "action"):
        assert torch.equal(before[key][is_open], after[key][is_open])
    assert torch.equal(before["observation"], after["observation"])
    shut, changed = before[~is_open], after[~is_open]
    assert not torch.allclose(shut["retrieved_context"], changed["retrieved_context"])
    # Lengths and angles stay: those of the vectors in the context, now and afterwards.
    vectors, _ = retrieval.equivariant_columns()
    for one, other in ((0, 1), (1, 1), (2, -1)):
        products = []
        for data in (shut, changed):
            now, then = data["retrieved_context"], data["next", "retrieved_context"]
            products.append((now[:, vectors[one]] * then[:, vectors[other]]).sum(-1))
        torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-3)
    inside = shut["action"][:, :3].norm(dim=-1) < 1  # turned without leaving the range
    assert inside.any()
    for data, other in ((shut, changed), (changed, shut)):
        torch.testing.assert_close(
            data["action"][inside, :3].norm(dim=-1), other["action"][inside, :3].norm(dim=-1)
        )
    assert changed["action"].abs().max() <= 1


def test_what_grips_is_scaled_alike_in_prompt_and_action(dataset, bank):
    torch.manual_seed(0)
    retrieval, before, after = batch_of(dataset, bank, 0.0)
    grips = before["action"][:, 3] != 0
    scale = (after["action"][:, 3] / before["action"][:, 3])[grips]
    assert ((scale >= 0.1 - 1e-6) & (scale <= 1 + 1e-6)).all()
    assert 0.4 < (scale == 1).float().mean() < 0.6
    _, tails = retrieval.equivariant_columns()
    for part in tails:
        expected = before["retrieved_context"][grips, part] * scale.unsqueeze(-1)
        torch.testing.assert_close(after["retrieved_context"][grips, part], expected)


def test_an_environment_passes_unchanged(bank):
    retrieval = PromptRetrieval(bank, METAWORLD_FRAME, FIELDS)
    index = TrajectoryPromptTransform(bank, choice="first")
    transforms = [index, RetrievedContextTransform(retrieval)]
    env = TransformedEnv(
        MetaWorldEnv("reach-v3", num_goals=1, max_steps=6),
        Compose(*transforms, ContextAugmentation(retrieval)),
    )
    check_env_specs(env)
    plain = TransformedEnv(
        MetaWorldEnv("reach-v3", num_goals=1, max_steps=6),
        Compose(*(t.clone() for t in transforms)),
    )
    torch.manual_seed(0)
    expected = plain.rollout(3)["retrieved_context"]
    env.set_seed(0)
    torch.manual_seed(0)
    torch.testing.assert_close(env.rollout(3)["retrieved_context"], expected)


def test_a_family_without_positions_is_only_scaled(dataset, bank):
    spec = FrameSpec(values=("state",), weights=(None,))
    retrieval = PromptRetrieval(bank, spec, {"state": (0, 39)})
    vectors, tails = retrieval.equivariant_columns()
    assert vectors == []
    assert [part.stop - part.start for part in tails] == [4, 4]


def test_rotations_are_uniform_and_mirror_half_the_time():
    torch.manual_seed(0)
    rotations = random_rotations(4000, 3)
    assert rotations.mean(0).abs().max() < 0.05
    assert (torch.linalg.det(rotations) > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_up_remains_up_for_every_second_transition(dataset, bank):
    torch.manual_seed(0)
    retrieval, before, after = batch_of(dataset, bank, 0.0)
    heights = [
        torch.stack([data["retrieved_context"][:, part.stop - 1] for part in vectors], -1)
        for data in (before, after)
        for vectors in (retrieval.equivariant_columns()[0],)
    ]
    same = (heights[0] - heights[1]).abs().amax(-1) < 1e-5
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_the_expert_s_action_turns_with_the_executed_one(dataset, bank):
    torch.manual_seed(0)
    retrieval, before, _ = batch_of(dataset, bank, 0.5)
    before["expert_action"] = before["action"].clone()
    after = ContextAugmentation(retrieval)(before.clone())
    assert torch.equal(after["expert_action"], after["action"])
    assert not torch.equal(after["action"], before["action"])
    assert "expert_action" not in ContextAugmentation(retrieval)(before.exclude("expert_action"))
