import copy

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.prompts.retrieval import METAWORLD_FRAME, PromptRetrieval
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.transforms import (
    ContextAugmentation,
    ObservationGateTransform,
    PromptContextTransform,
)


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
        PromptContextTransform(retrieval),
        ObservationGateTransform([0, 1], state_visible_prob=0.5),
        ContextAugmentation(retrieval),
    ]


def test_all_tensors_move_with_the_transforms(retrieval, bank):
    data = sampled(bank).to("meta")  # as any other device: what stays behind would fail
    for transform in transforms(copy.deepcopy(retrieval)):
        data = transform.to("meta")(data)
        assert {tensor.device.type for tensor in transform.buffers()} <= {"meta"}
    assert data["prompt_context"].shape == (6, retrieval.features)
    assert data["prompt", "observation_gate"].shape == (6, 1)


def test_nothing_frozen_is_saved(retrieval):
    assert not any(transform.state_dict() for transform in transforms(retrieval))


def test_contexts_are_float32_of_observations_of_any_number_type(retrieval, bank):
    data = sampled(bank)
    double = data.clone()
    for key in ("observation", ("next", "observation")):
        double[key] = double[key].double()
    transform = PromptContextTransform(retrieval)
    for key in ("prompt_context", ("next", "prompt_context")):
        assert torch.equal(transform(data.clone())[key], transform(double.clone())[key])


@pytest.mark.gpu
def test_a_batch_on_a_gpu(retrieval, bank):
    data = sampled(bank).to("cuda")
    expected = PromptContextTransform(retrieval)(sampled(bank))["prompt_context"]
    for transform in transforms(copy.deepcopy(retrieval)):
        data = transform.to("cuda")(data)
        if isinstance(transform, PromptContextTransform):
            torch.testing.assert_close(data["prompt_context"].cpu(), expected, rtol=1e-3, atol=1e-3)
    assert data["action"].device.type == "cuda"
