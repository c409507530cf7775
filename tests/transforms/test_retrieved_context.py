import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.prompts import FrameSpec
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL, RetrievalSpec
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.transforms import (
    ContextAugmentation,
    ObservationGateTransform,
    RetrievedContextTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.transforms.retrieved_context import random_turns


@pytest.fixture
def retrieval(bank):
    return PromptRetrieval(bank, METAWORLD_RETRIEVAL, METAWORLD_OBSERVATION_LAYOUT["fields"])


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


def batch_of(dataset, bank, retrieval, probability):
    torch.manual_seed(0)
    before = Compose(
        TrajectoryPromptTransform(bank),
        RetrievedContextTransform(retrieval),
        ObservationGateTransform([], state_visible_prob=probability),
    )
    batch = before(dataset.transitions[:200].clone())
    return batch, ContextAugmentation(retrieval)(batch.clone())


CONTEXTS = ("retrieved_context", ("next", "retrieved_context"))


def vectors_of(retrieval, data):
    """All vectors of a batch [B, V, 3]: those of both contexts, and the action's movement."""
    parts = [data[key][:, part] for key in CONTEXTS for part in retrieval.layout.vectors]
    return torch.stack([*parts, data["action"][:, :3]], 1)


def test_one_turn_a_transition_where_the_state_is_hidden(dataset, bank, retrieval):
    before, after = batch_of(dataset, bank, retrieval, 0.5)
    is_open = before["prompt", "observation_gate"].squeeze(-1).bool()
    for key in (*CONTEXTS, "action"):
        assert torch.equal(before[key][is_open], after[key][is_open])
    for key in before.keys(include_nested=True, leaves_only=True):
        if key not in (*CONTEXTS, "action", "expert_action"):
            assert torch.equal(before[key], after[key]), key
    one, other = (vectors_of(retrieval, data[~is_open]) for data in (before, after))
    assert not torch.allclose(one, other)
    # Heights stay, and so do all lengths and angles, those between contexts and action too.
    assert torch.equal(one[..., 2], other[..., 2])
    torch.testing.assert_close(other @ other.mT, one @ one.mT, rtol=1e-3, atol=1e-3)
    stays = (one == other).flatten(1).all(-1).float().mean().item()
    assert stays == pytest.approx(0.3, abs=0.12)


def test_what_is_no_vector_stays(dataset, bank, retrieval):
    before, after = batch_of(dataset, bank, retrieval, 0.0)
    turned = torch.zeros(retrieval.features, dtype=torch.bool)
    for part in retrieval.layout.vectors:
        turned[part] = True
    for key in CONTEXTS:
        assert torch.equal(before[key][:, ~turned], after[key][:, ~turned])
    assert torch.equal(before["action"][:, 3], after["action"][:, 3])  # the gripper's


@pytest.mark.parametrize("unchanged", [0.0, 1.0])
def test_a_fraction_stays_as_it_is(dataset, bank, retrieval, unchanged):
    before, _ = batch_of(dataset, bank, retrieval, 0.0)
    after = ContextAugmentation(retrieval, unchanged=unchanged)(before.clone())
    same = (before["retrieved_context"] == after["retrieved_context"]).all(-1)
    assert same.float().mean().item() == unchanged


def test_actions_of_other_precisions_and_shapes_turn_alike(dataset, bank, retrieval):
    before, _ = batch_of(dataset, bank, retrieval, 0.0)
    before = before[:200].reshape(20, 10)
    before["expert_action"] = before["action"].double()
    after = ContextAugmentation(retrieval)(before.clone())
    assert after["action"].shape == (20, 10, 4)
    assert after["expert_action"].dtype == torch.float64
    torch.testing.assert_close(after["expert_action"].float(), after["action"])
    assert not torch.equal(after["action"], before["action"])
    assert "expert_action" not in ContextAugmentation(retrieval)(before.exclude("expert_action"))


def test_an_environment_passes_unchanged(bank, retrieval):
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


def test_a_family_without_positions_passes_unchanged(dataset, bank):
    spec = RetrievalSpec(frames=(FrameSpec(values=("state",), weights=(None,)),))
    retrieval = PromptRetrieval(bank, spec, {"state": (0, 39)})
    before, after = batch_of(dataset, bank, retrieval, 0.0)
    for key in (*CONTEXTS, "action"):
        assert torch.equal(before[key], after[key])


@pytest.mark.parametrize("size", [2, 3])
def test_turns_are_uniform_about_the_last_axis_and_mirror_half_the_time(size):
    torch.manual_seed(0)
    turns = random_turns(4000, size)
    torch.testing.assert_close(
        turns @ turns.mT, torch.eye(size).expand(4000, size, size), rtol=0, atol=1e-5
    )
    last = torch.eye(size)[-1].expand(4000, size)
    assert torch.equal(turns[:, -1], last)
    assert torch.equal(turns[:, :, -1], last)
    assert turns[:, :-1].mean(0).abs().max() < 0.05
    assert (torch.linalg.det(turns) > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    if size == 3:  # every direction alike
        angle = torch.atan2(turns[:, 1, 0], turns[:, 0, 0])
        counts = torch.histc(angle, 8, -torch.pi, torch.pi)
        assert counts.min() > 400
