from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn

from llmdpd_torchrl.modules import (
    NOISE_SCHEDULES,
    PREDICTIONS,
    SAMPLERS,
    DiffusionModule,
    MLPDenoiser,
)
from llmdpd_torchrl.utils.errors import ConfigError, DataError

MEAN, STD = 0.2, 0.15


class GaussianDenoiser(nn.Module):
    """The best prediction where clean actions are N(MEAN, STD^2), in closed form."""

    def __init__(self, prediction: str = "epsilon") -> None:
        super().__init__()
        self.prediction = prediction
        self.alpha_bar: torch.Tensor | None = None  # set once the schedule exists

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        noisy, step = inputs[..., :1], inputs[..., -1:].long()
        now = self.alpha_bar[step]
        clean = MEAN + now.sqrt() * STD**2 / (now * STD**2 + 1 - now) * (noisy - now.sqrt() * MEAN)
        if self.prediction == "x0":
            return clean
        noise = (noisy - now.sqrt() * clean) / (1 - now).sqrt()
        if self.prediction == "epsilon":
            return noise
        return now.sqrt() * noise - (1 - now).sqrt() * clean


def gaussian_module(num_steps: int, **kwargs) -> DiffusionModule:
    denoiser = GaussianDenoiser(kwargs.get("prediction", "epsilon"))
    module = DiffusionModule(
        denoiser, action_dim=1, num_steps=num_steps, action_bounds=(-50.0, 50.0), **kwargs
    ).double()
    denoiser.alpha_bar = module.schedule.alphas_cumprod
    return module


def small_module(**kwargs) -> DiffusionModule:
    torch.manual_seed(0)
    return DiffusionModule(MLPDenoiser(2, 3, hidden=(16, 16)), action_dim=2, **kwargs)


def propagate(num_steps: int, sampler: str) -> tuple[float, float]:
    """Mean and standard deviation that the sampler should reach: its steps are linear here.

    x and x0 are followed as (slope, offset) in the latent and in each step's own noise.
    """
    betas = [
        1 - math.exp(-0.1 / num_steps - 4.95 * (2 * k - 1) / num_steps**2)
        for k in range(1, num_steps + 1)
    ]
    alpha_bar = [math.prod(1 - b for b in betas[: k + 1]) for k in range(num_steps)]
    log_snr = [0.5 * math.log(a / (1 - a)) for a in alpha_bar]
    mean, variance = 0.0, 1.0
    slope, clean_before = 1.0, None  # of the deterministic samplers
    for k in reversed(range(num_steps)):
        now, then = alpha_bar[k], alpha_bar[k - 1] if k else 1.0
        gain = math.sqrt(now) * STD**2 / (now * STD**2 + 1 - now)
        clean = gain * slope, MEAN + gain * (mean - math.sqrt(now) * MEAN)
        if sampler == "ddpm":
            on_clean = math.sqrt(then) * betas[k] / (1 - now)
            on_noisy = math.sqrt(1 - betas[k]) * (1 - then) / (1 - now)
            variance = (on_clean * gain + on_noisy) ** 2 * variance
            variance += betas[k] * (1 - then) / (1 - now)
        else:
            ratio = math.sqrt((1 - then) / (1 - now))
            on_clean, on_noisy = math.sqrt(then) - ratio * math.sqrt(now), ratio
            if sampler == "dpmpp_2m" and 0 < k < num_steps - 1:
                r = (log_snr[k] - log_snr[k + 1]) / (log_snr[k - 1] - log_snr[k])
                guess = [c + (c - b) / (2 * r) for c, b in zip(clean, clean_before, strict=True)]
                clean_before, clean = clean, guess
            else:
                clean_before = clean
            slope = on_noisy * slope + on_clean * clean[0]
            variance = slope**2
        mean = on_noisy * mean + on_clean * clean[1]
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("num_steps", [1, 5, 50])
def test_the_exact_denoiser_gives_the_closed_form_gaussian(num_steps, sampler, prediction):
    module = gaussian_module(num_steps, sampler=sampler, prediction=prediction)
    draws = module.sample(
        torch.zeros(100_000, 1, dtype=torch.float64), generator=torch.Generator().manual_seed(1)
    )
    mean, std = propagate(num_steps, sampler)
    assert draws.mean().item() == pytest.approx(mean, abs=2e-3)
    assert draws.std().item() == pytest.approx(std, abs=2e-3)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_with_many_steps_that_gaussian_is_the_data(sampler):
    assert propagate(2000, sampler) == pytest.approx((MEAN, STD), rel=0.02)


@pytest.mark.parametrize("schedule", list(NOISE_SCHEDULES))
def test_the_second_order_comes_closer_to_the_ode_in_as_many_steps(schedule):
    module = gaussian_module(1000, schedule=schedule)
    signals = [math.sqrt(module.schedule.alpha_bar[k]) for k in (999, 0)]
    spreads = [math.sqrt(s**2 * STD**2 + 1 - s**2) for s in signals]
    condition = torch.zeros(1, 1, dtype=torch.float64)
    latent = torch.full((1, 1), 1.3, dtype=torch.float64)
    # The ODE carries quantiles to quantiles; its end is denoised once more.
    end = signals[1] * MEAN + (latent - signals[0] * MEAN) / spreads[0] * spreads[1]
    exact = module.predict_clean(end, 0, module.denoise(end, condition, 0)).item()
    for num_steps in (10, 20, 50):
        first, second = (
            gaussian_module(1000, schedule=schedule, sampler=name)
            .sample(condition, latent=latent, num_steps=num_steps)
            .item()
            for name in ("ddim", "dpmpp_2m")
        )
        assert abs(second - exact) < 0.2 * abs(first - exact)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    steps=st.sampled_from([1, 2, 5, 20, 1000]),
    stride=st.integers(1, 6),
    schedule=st.sampled_from(list(NOISE_SCHEDULES)),
    sampler=st.sampled_from(list(SAMPLERS)),
    prediction=st.sampled_from(PREDICTIONS),
    sample_shape=st.sampled_from([(), (2,), (2, 1)]),
)
def test_samples_have_the_conditions_shape_and_dtype_and_lie_in_range(
    batch, dtype, steps, stride, schedule, sampler, prediction, sample_shape
):
    module = small_module(
        num_steps=steps,
        sampling_steps=min(stride, steps),
        schedule=schedule,
        sampler=sampler,
        prediction=prediction,
    ).to(dtype)
    condition = torch.randn(*batch, 3).to(dtype)
    action = module.sample(condition, sample_shape=sample_shape)
    assert action.shape == (*sample_shape, *batch, 2)
    assert action.dtype == dtype
    assert (action.abs() <= 1).all()  # and so not nan
    step = torch.randint(steps, batch)
    noisy, noise = module.add_noise(torch.rand(*batch, 2).to(dtype), step)
    output = module.denoise(noisy, condition, step)
    clean = module.predict_clean(noisy, step, output)
    assert noisy.dtype == output.dtype == clean.dtype == dtype
    assert module.target(clean, noise, step).dtype == dtype


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("sampling_steps", [1, 2, 7, 1000])
def test_a_thousand_steps_at_any_stride(sampler, sampling_steps):
    module = small_module(num_steps=1000, sampling_steps=sampling_steps, sampler=sampler)
    assert (module.sample(torch.randn(2, 3)).abs() <= 1).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_autocast_keeps_the_sample_in_the_conditions_dtype(prediction):
    module = small_module(prediction=prediction, sampler="ddim")
    condition = torch.randn(8, 3)
    exact = module.sample(condition, deterministic=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        action = module.sample(condition, deterministic=True)
    assert action.dtype == torch.float32
    torch.testing.assert_close(action, exact, rtol=0, atol=0.1)


def test_many_draws_of_one_row_are_those_of_the_row_repeated():
    module = small_module()
    condition = torch.randn(4, 3)
    one, other = (
        module.sample(
            given_condition, sample_shape=shape, generator=torch.Generator().manual_seed(3)
        )
        for given_condition, shape in ((condition, (6,)), (condition.expand(6, 4, 3), ()))
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_preconditioning_changes_no_sample_and_no_gradient(sampler):
    class Plain(nn.Module):
        """The same denoiser, of which the module sees no more than that it is callable."""

        def __init__(self, denoiser):
            super().__init__()
            self.denoiser = denoiser

        def forward(self, inputs):
            return self.denoiser(inputs)

    module = small_module(sampler=sampler).double()
    plain = copy.deepcopy(module)
    plain.score_network = Plain(plain.score_network)
    condition = torch.randn(4, 3, dtype=torch.float64)
    results = []
    for each in (module, plain):
        leaf = condition.clone().requires_grad_()
        action = each.sample(leaf, sample_shape=(3,), generator=torch.Generator().manual_seed(0))
        wanted = [leaf, *each.score_network.parameters()]
        results.append((action, *torch.autograd.grad(action.square().sum(), wanted)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_one_graph_without_a_break(sampler):
    module = small_module(sampler=sampler)
    compiled = torch.compile(module.sample, backend="eager", fullgraph=True)
    condition = torch.randn(32, 3, requires_grad=True)
    results = []
    for sample in (compiled, module.sample):
        torch.manual_seed(7)
        action = sample(condition)
        results.append((action, *torch.autograd.grad(action.square().sum(), condition)))
    torch.testing.assert_close(*results)
    assert results[0][1].abs().sum() > 0


def test_training_and_acting_compile_without_a_break():
    def train(module, action, condition, step):
        noisy, noise = module.add_noise(action, step)
        output = module.denoise(noisy, condition, step)
        clean = module.predict_clean(noisy, step, output)
        return (output - module.target(action, noise, step)).square().mean() + clean.mean()

    module = small_module(prediction="v")
    compiled = torch.compile(train, backend="eager", fullgraph=True)
    compiled(module, torch.rand(4, 2), torch.randn(4, 3), torch.randint(5, (4,))).backward()
    with set_interaction_type(InteractionType.DETERMINISTIC):
        observation = torch.randn(4, 3)
        acting = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(acting(observation), module(observation))


def test_add_noise_has_the_stated_moments():
    module = small_module()
    action = torch.full((200_000, 2), 0.5)
    for k, alpha_bar in enumerate(module.schedule.alpha_bar):
        noisy, noise = module.add_noise(action, torch.full((200_000,), k))
        rebuilt = math.sqrt(alpha_bar) * action + math.sqrt(1 - alpha_bar) * noise
        torch.testing.assert_close(noisy, rebuilt)
        assert noisy.mean().item() == pytest.approx(0.5 * math.sqrt(alpha_bar), abs=0.01)


def test_predict_clean_inverts_add_noise_and_clips():
    module = small_module().double()
    action = torch.rand(64, 2, dtype=torch.float64) * 2 - 1
    step = torch.randint(5, (64,))
    noisy, noise = module.add_noise(action, step)
    torch.testing.assert_close(module.predict_clean(noisy, step, noise), action)
    for k in range(5):
        torch.testing.assert_close(
            module.predict_clean(noisy, k, noise),
            module.predict_clean(noisy, torch.full((64,), k), noise),
        )
    assert module.predict_clean(noisy + 100, step, noise).max() == 1.0


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", list(NOISE_SCHEDULES))
def test_a_perfect_output_gives_the_clean_action_back_whatever_it_means(prediction, schedule):
    module = small_module(prediction=prediction, schedule=schedule, num_steps=20).double()
    action = torch.rand(64, 2, dtype=torch.float64) * 2 - 1
    step = torch.randint(20, (64,))
    noisy, noise = module.add_noise(action, step)
    output = module.target(action, noise, step)
    torch.testing.assert_close(module.predict_clean(noisy, step, output), action)
    for k in (0, 7, 19):
        rows = step == k
        torch.testing.assert_close(module.target(action, noise, k)[rows], output[rows])


def test_targets_are_noise_action_and_velocity():
    action, noise, step = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 4])
    assert small_module(prediction="x0").target(action, noise, step) is action
    module = small_module()
    assert module.target(action, noise, step) is noise
    now = module.schedule.alphas_cumprod[step][:, None]
    torch.testing.assert_close(
        small_module(prediction="v").target(action, noise, step),
        now.sqrt() * noise - (1 - now).sqrt() * action,
    )


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_samples_lie_in_range_and_carry_gradients_through_every_step(sampler):
    module = small_module(sampler=sampler)
    outputs = []
    module.score_network.register_forward_hook(lambda _, __, output: outputs.append(output))
    condition = torch.randn(32, 3, requires_grad=True)
    action = module.sample(condition)
    assert action.abs().max() <= 1
    assert len(outputs) == 5
    grads = torch.autograd.grad(action.sum(), [condition, *outputs])
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize(("steps", "path"), [(1, [4]), (2, [4, 0]), (3, [4, 2, 0])])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_fewer_steps_skip_evenly(steps, path, sampler):
    module = DiffusionModule(
        nn.Linear(2 + 3 + 1, 2), action_dim=2, sampling_steps=steps, sampler=sampler
    )
    seen = []
    module.score_network.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0][0, -1].item())
    )
    assert module(torch.randn(2, 3)).isfinite().all()
    assert seen == path


def test_the_generator_alone_decides():
    module = small_module()
    condition = torch.randn(4, 3)
    state = torch.get_rng_state()
    one, other = (
        module.sample(condition, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_condition_is_computed_once_per_sample():
    calls = []

    class Conditioner(nn.Module):
        def forward(self, observation, prompt):
            calls.append(1)
            return observation + prompt

    module = small_module(conditioner=Conditioner())
    module(torch.randn(4, 3), torch.randn(4, 3))
    assert len(calls) == 1


class TestDeterministic:
    def test_it_repeats_ignores_the_batch_and_draws_nothing(self):
        module = small_module()
        observation = torch.randn(8, 3)
        state = torch.get_rng_state()
        with set_interaction_type(InteractionType.DETERMINISTIC):
            action = module(observation)
            torch.testing.assert_close(module(observation), action, rtol=0, atol=0)
            torch.testing.assert_close(module(observation[3:4]), action[3:4])
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(module(observation), module(observation))
        with set_interaction_type(InteractionType.RANDOM):
            assert not torch.equal(module(observation), module(observation))

    def test_the_latent_is_saved_with_the_policy(self):
        module, other = small_module(), small_module()
        other.deterministic_latent.zero_()
        other.load_state_dict(module.state_dict())
        assert torch.equal(other.deterministic_latent, module.deterministic_latent)
        assert module.deterministic_latent.norm().item() == pytest.approx(0.1 * math.sqrt(2))

    def test_it_is_a_mode_of_a_symmetric_bimodal_target(self):
        class TwoModes(nn.Module):
            """Exact denoiser of clean actions at +-0.6 with equal odds, in every dimension."""

            def forward(self, inputs):
                noisy = inputs[..., :2]
                now = module.schedule.alphas_cumprod[inputs[..., -1:].long()]
                clean = 0.6 * torch.tanh(0.6 * now.sqrt() * noisy / (1 - now))
                return (noisy - now.sqrt() * clean) / (1 - now).sqrt()

        module = DiffusionModule(TwoModes(), action_dim=2, num_steps=20)
        action = module.sample(torch.zeros(1, 1), deterministic=True)
        torch.testing.assert_close(action.abs(), torch.full((1, 2), 0.6), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "dpm"}, "'dpm'.*ddpm, ddim, dpmpp_2m"),
        ({"prediction": "eps"}, "'eps'.*epsilon, x0, v"),
        ({"schedule": "vpp"}, "'vpp'.*vp, linear"),
        ({"sampling_steps": 6}, "6 reverse steps asked of a diffusion of 5"),
        ({"sampling_steps": 0}, "0 reverse steps"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"action_bounds": (1.0, 1.0)}, r"\[1.0, 1.0\] is empty"),
        ({"action_bounds": (-math.inf, 1.0)}, "infinite"),
    ],
)
def test_mistakes_are_named_when_built(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        small_module(**kwargs)


def test_mistakes_in_shapes_are_named_with_the_shapes():
    module = small_module()
    with pytest.raises(ConfigError, match="width 3, but gets 4: set condition_dim"):
        module(torch.randn(2, 4))
    with pytest.raises(DataError, match=r"\[2, 1\], \[5, 2\]: all but the last"):
        module(torch.randn(2, 1), torch.randn(5, 2))
    with pytest.raises(DataError, match=r"steps of shape \[4, 1\]: actions must be \[\*, 2\]"):
        module.add_noise(torch.randn(4, 2), torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(DataError, match=r"actions of shape \[4, 3\]"):
        module.add_noise(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    narrow = DiffusionModule(nn.Linear(2 + 3 + 1, 1), action_dim=2)
    with pytest.raises(ConfigError, match=r"made \[4, 1\] of noisy actions \[4, 2\]"):
        narrow(torch.randn(4, 3))
