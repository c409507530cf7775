from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdpd_torchrl.modules import NOISE_SCHEDULES, SAMPLERS, NoiseSchedule
from llmdpd_torchrl.modules.samplers import ReverseStep, reverse_process
from llmdpd_torchrl.utils.errors import ConfigError

MEAN, STD = 0.2, 0.15
LEVELS = [0.01, 0.2, 0.5, 0.9]


def reverse_steps(sampler: str, alpha_bar: list[float]) -> list[ReverseStep]:
    """The reverse steps between levels that are all visited, noisiest first."""
    path, steps = reverse_process(sampler, alpha_bar[::-1], len(alpha_bar))
    assert path == list(range(len(alpha_bar)))[::-1]
    return steps


def exact_clean(noisy: float, alpha_bar: float) -> float:
    """E[x0 | noisy] when clean actions are N(MEAN, STD^2)."""
    signal = math.sqrt(alpha_bar)
    gain = signal * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    return MEAN + gain * (noisy - signal * MEAN)


def on_the_ode(quantile: float, alpha_bar: float) -> float:
    """The reverse ODE carries quantiles to quantiles."""
    spread = math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)
    return math.sqrt(alpha_bar) * MEAN + quantile * spread


def ode_error(sampler: str, num_steps: int) -> float:
    """How far it strays between two noise levels in steps that are even in log-SNR."""
    first, last = -2.5, 1.5
    log_snr = [first + (last - first) * i / num_steps for i in range(num_steps + 1)]
    alpha_bar = [1 / (1 + math.exp(-2 * value)) for value in log_snr]
    x, previous = on_the_ode(1.3, alpha_bar[0]), 0.0
    for step, now in zip(reverse_steps(sampler, alpha_bar), alpha_bar, strict=False):
        clean = exact_clean(x, now)
        x = step.noisy * x + step.clean * clean + step.previous * previous
        previous = clean
    return abs(x - on_the_ode(1.3, alpha_bar[-1]))


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("num_steps", [20, 40, 80])
def test_the_ode_is_solved_to_the_stated_order(sampler, order, num_steps):
    ratio = ode_error(sampler, num_steps) / ode_error(sampler, 2 * num_steps)
    assert ratio == pytest.approx(2**order, rel=0.03)


def test_with_few_steps_the_second_order_is_closer():
    for num_steps in (5, 10, 20):
        assert ode_error("dpmpp_2m", num_steps) < 0.6 * ode_error("ddim", num_steps)


#: Apart by a thousandth at least: a second-order step divides by the distance between levels.
levels = st.sets(st.integers(1, 999), min_size=2, max_size=6).map(
    lambda chosen: [level / 1000 for level in sorted(chosen)]
)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@given(alpha_bar=levels)
def test_a_known_clean_action_keeps_the_noise_level(sampler, alpha_bar):
    """Were x0 known, x_then would be distributed as noising x0 to that level makes it."""
    steps = reverse_steps(sampler, alpha_bar)
    for step, (now, then) in zip(steps, pairwise(alpha_bar), strict=True):
        mean = step.noisy * math.sqrt(now) + step.clean + step.previous
        variance = step.noisy**2 * (1 - now) + step.std**2
        assert mean == pytest.approx(math.sqrt(then), rel=1e-6)
        assert variance == pytest.approx(1 - then, rel=1e-6)


def test_ddpm_has_the_posteriors_moments():
    schedule = NoiseSchedule(5).double()
    descending = list(reversed(schedule.alpha_bar))
    for k, step in zip((4, 3, 2, 1), reverse_steps("ddpm", descending), strict=True):
        beta, now = schedule.betas[k].item(), schedule.alpha_bar[k]
        then = schedule.alpha_bar[k - 1]
        assert step.std**2 == pytest.approx(beta * (1 - then) / (1 - now))
        assert step.clean == pytest.approx(math.sqrt(then) * beta / (1 - now))
        assert step.noisy == pytest.approx(math.sqrt(1 - beta) * (1 - then) / (1 - now))


def test_dpmpp_2m_is_the_papers_algorithm():
    lam = [math.log(math.sqrt(a / (1 - a))) for a in LEVELS]
    torch.manual_seed(0)
    x, clean, previous = torch.randn(3, 7, dtype=torch.float64)
    steps = reverse_steps("dpmpp_2m", LEVELS)
    assert steps[0] == reverse_steps("ddim", LEVELS)[0]  # there is nothing to extrapolate from
    for i in (1, 2):
        h, h_before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        r = h_before / h
        estimate = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * previous
        now, then = LEVELS[i], LEVELS[i + 1]
        expected = math.sqrt((1 - then) / (1 - now)) * x
        expected = expected - math.sqrt(then) * (math.exp(-h) - 1) * estimate
        torch.testing.assert_close(steps[i](x, clean, previous), expected)


def test_only_ddpm_draws_and_only_2m_looks_back():
    for sampler in SAMPLERS:
        steps = reverse_steps(sampler, LEVELS)
        assert all((step.std > 0) == (sampler == "ddpm") for step in steps)
        assert all((step.previous != 0) == (sampler == "dpmpp_2m") for step in steps[1:])
        assert steps[0].previous == 0


def test_the_noise_is_the_generators():
    step = reverse_steps("ddpm", LEVELS)[0]
    x = torch.zeros(5, 2)
    draws = [step(x, x, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    expected = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)) * step.std
    torch.testing.assert_close(draws[0], expected)


cases = st.integers(1, 1000).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k)))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@settings(max_examples=50, deadline=None)
@given(case=cases, schedule=st.sampled_from(list(NOISE_SCHEDULES)))
def test_a_path_visits_distinct_steps_from_the_noisiest_down(sampler, case, schedule):
    num_steps, sampling_steps = case
    alpha_bar = NoiseSchedule(num_steps, schedule).alpha_bar
    path, steps = reverse_process(sampler, alpha_bar, sampling_steps)
    assert len(path) == len(steps) + 1 == sampling_steps
    assert path[0] == num_steps - 1
    assert all(now > then for now, then in pairwise(path))
    assert all(math.isfinite(value) for step in steps for value in step)
    if sampling_steps > 1:
        assert path[-1] == 0
    if sampling_steps > 1 and sampler != "dpmpp_2m":
        gaps = [now - then for now, then in pairwise(path)]
        assert max(gaps) - min(gaps) <= 1


def test_the_second_order_path_is_even_in_log_snr():
    alpha_bar = NoiseSchedule(1000).alpha_bar
    path, _ = reverse_process("dpmpp_2m", alpha_bar, 9)
    log_snr = [0.5 * math.log(alpha_bar[k] / (1 - alpha_bar[k])) for k in path]
    stride = (log_snr[-1] - log_snr[0]) / 8
    for now, then in pairwise(log_snr):
        assert then - now == pytest.approx(stride, rel=0.15)


@pytest.mark.parametrize("num_steps", [0, -1, 6])
def test_an_impossible_number_of_steps_is_named(num_steps):
    with pytest.raises(ConfigError, match=rf"{num_steps} reverse steps asked .* choose 1 to 5"):
        reverse_process("ddim", NoiseSchedule(5).alpha_bar, num_steps)


def test_an_unknown_sampler_lists_the_known():
    with pytest.raises(ConfigError, match=r"'euler'.*ddpm, ddim, dpmpp_2m"):
        reverse_process("euler", LEVELS[::-1], 2)


# --- noise schedules ---


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
