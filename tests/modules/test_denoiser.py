from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmdpd_torchrl.modules import Mish, MLPDenoiser, SinusoidalTimeEmbedding
from llmdpd_torchrl.utils.errors import ConfigError


def test_time_embedding_is_the_stated_formula():
    embedding = SinusoidalTimeEmbedding(16)(torch.tensor([[3.0]]))[0]
    frequencies = [10_000 ** (-i / 7) for i in range(8)]
    expected = [math.sin(3 * f) for f in frequencies] + [math.cos(3 * f) for f in frequencies]
    torch.testing.assert_close(embedding, torch.tensor(expected))


@pytest.mark.parametrize("dim", [2, 7])
def test_time_embedding_refuses_a_width_it_can_not_fill(dim):
    with pytest.raises(ConfigError, match="even and at least 4"):
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
    with pytest.raises(ConfigError, match="width 3, but gets 4: set condition_dim"):
        MLPDenoiser(2, 3)(torch.randn(1, 7))
    with pytest.raises(ConfigError, match="width 3, but gets 4: set condition_dim"):
        MLPDenoiser(2, 3).precondition(torch.randn(1, 4), [0])


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_preconditioning_is_the_same_function(hidden, batch):
    denoiser = MLPDenoiser(2, 3, hidden=hidden, time_dim=4).double()
    noisy, condition = torch.randn(7, *batch, 2).double(), torch.randn(*batch, 3).double()
    steps = [999, 3, 0]
    for step, layer in zip(steps, denoiser.precondition(condition, steps), strict=True):
        column = torch.full((7, *batch, 1), float(step), dtype=torch.float64)
        whole = torch.cat([noisy, condition.expand(7, *batch, 3), column], -1)
        torch.testing.assert_close(denoiser(noisy, layer), denoiser(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_late_steps_stay_apart_in_half_precision(dtype):
    denoiser = MLPDenoiser(2, 3).to(dtype)
    frequencies = denoiser.time_embedding[0].frequencies
    assert frequencies.dtype == torch.float32
    layers = denoiser.precondition(torch.zeros(3, dtype=dtype), [998, 999])
    assert layers[0].bias.dtype == dtype
    assert not torch.equal(layers[0].bias, layers[1].bias)
