from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmdpd_torchrl.modules import NOISE_SCHEDULES, NoiseSchedule
from llmdpd_torchrl.utils.errors import ConfigError


def test_vp_is_the_stated_formula():
    steps = 5
    betas = [
        1 - math.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * k - 1) / steps**2)
        for k in range(1, steps + 1)
    ]
    schedule = NoiseSchedule(steps).double()
    np.testing.assert_allclose(schedule.betas.numpy(), betas, rtol=1e-14)
    # The exponents telescope: the last alpha_bar does not depend on the number of steps.
    for other in (1, 5, 50):
        assert NoiseSchedule(other).alpha_bar[-1] == pytest.approx(math.exp(-5.05))


@pytest.mark.parametrize("name", list(NOISE_SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 5, 100, 1000])
def test_tables_agree_with_one_another(name, steps):
    schedule = NoiseSchedule(steps, name).double()
    betas = schedule.betas.numpy()
    assert betas.shape == (steps,)
    assert (betas > 0).all()
    assert (betas < 1).all()
    alpha_bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), alpha_bar)
    np.testing.assert_allclose(schedule.sqrt_alphas_cumprod.numpy() ** 2, alpha_bar)
    np.testing.assert_allclose(schedule.sqrt_one_minus_alphas_cumprod.numpy() ** 2, 1 - alpha_bar)
    np.testing.assert_allclose(schedule.alpha_bar, alpha_bar)


@given(name=st.sampled_from(list(NOISE_SCHEDULES)), steps=st.integers(1, 1000))
def test_every_number_of_steps_gives_a_valid_schedule(name, steps):
    schedule = NoiseSchedule(steps, name)
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert all(now > after > 0 for now, after in pairwise((1.0, *schedule.alpha_bar)))
    assert (schedule.alphas_cumprod.diff() < 0).all()  # in float32 as well
    assert (schedule.sqrt_one_minus_alphas_cumprod > 0).all()


def test_linear_is_torchrls():
    from torchrl.modules import DiffusionActor

    stock = DiffusionActor(action_dim=2, obs_dim=3, num_steps=100).module
    torch.testing.assert_close(NoiseSchedule(100, "linear").alphas_cumprod, stock.alphas_cumprod)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_casts_never_lose_precision(dtype):
    exact = NoiseSchedule(50).double().sqrt_one_minus_alphas_cumprod
    cast = NoiseSchedule(50).half().to(dtype)
    assert cast.betas.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(
        cast.sqrt_one_minus_alphas_cumprod.double(), exact, rtol=1e-7, atol=0
    )


def test_constants_stay_out_of_the_state_dict_and_survive_a_copy():
    schedule = NoiseSchedule(5)
    assert schedule.state_dict() == {}
    assert torch.equal(copy.deepcopy(schedule).betas, schedule.betas)


def test_mistakes_name_the_choices():
    with pytest.raises(ConfigError, match=r"'quadratic'.*vp, linear"):
        NoiseSchedule(5, "quadratic")
    with pytest.raises(ConfigError, match="num_steps=0"):
        NoiseSchedule(0)
    with pytest.raises(ConfigError, match=r"integer number of steps.*num_steps=2\.5"):
        NoiseSchedule(2.5)
