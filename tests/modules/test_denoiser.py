from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmdpd_torchrl.modules import Mish, MLPDenoiser, SinusoidalTimeEmbedding


def test_time_embedding_is_the_stated_formula():
    embedding = SinusoidalTimeEmbedding(16)(torch.tensor([[3.0]]))[0]
    frequencies = [10_000 ** (-i / 7) for i in range(8)]
    expected = [math.sin(3 * f) for f in frequencies] + [math.cos(3 * f) for f in frequencies]
    torch.testing.assert_close(embedding, torch.tensor(expected))


@pytest.mark.parametrize("dim", [2, 7])
def test_time_embedding_refuses_a_width_it_can_not_fill(dim):
    with pytest.raises(ValueError, match="even and at least 4"):
        SinusoidalTimeEmbedding(dim)


def test_layers_are_diffusion_qls():
    denoiser = MLPDenoiser(action_dim=4, condition_dim=39)
    shapes = [tuple(m.weight.shape) for m in denoiser.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(32, 16), (16, 32), (256, 59), (256, 256), (256, 256), (4, 256)]
    assert sum(isinstance(m, Mish) for m in denoiser.modules()) == 4


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_any_batch_shape(batch):
    denoiser = MLPDenoiser(2, 3, hidden=(8,), activation="relu", time_dim=4)
    assert denoiser(torch.randn(*batch, 6)).shape == (*batch, 2)


def test_the_step_matters():
    denoiser = MLPDenoiser(2, 3, hidden=(8,))
    inputs = torch.randn(1, 5)
    early, late = (denoiser(torch.cat([inputs, torch.full((1, 1), k)], -1)) for k in (0.0, 4.0))
    assert not torch.allclose(early, late)


def test_a_condition_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match="width 3, but gets 4: set condition_dim"):
        MLPDenoiser(2, 3)(torch.randn(1, 7))
