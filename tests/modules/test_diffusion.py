from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import nn
from torchrl.data import Bounded

from llmdpd_torchrl.errors import ConfigError
from llmdpd_torchrl.modules import SAMPLERS, DiffusionActor, DiffusionModule, MLPDenoiser

MEAN, STD = 0.2, 0.15


class GaussianDenoiser(nn.Module):
    """E[noise | noisy action] when clean actions are N(MEAN, STD^2), in closed form."""

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
        return (noisy - now.sqrt() * clean) / (1 - now).sqrt()


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
    """Mean and standard deviation that the sampler should reach: its steps are linear here."""
    betas = [
        1 - math.exp(-0.1 / num_steps - 4.95 * (2 * k - 1) / num_steps**2)
        for k in range(1, num_steps + 1)
    ]
    alpha_bar = [math.prod(1 - b for b in betas[: k + 1]) for k in range(num_steps)]
    mean, variance = 0.0, 1.0
    for k in reversed(range(num_steps)):
        now, then = alpha_bar[k], alpha_bar[k - 1] if k else 1.0
        gain = math.sqrt(now) * STD**2 / (now * STD**2 + 1 - now)
        offset = MEAN - gain * math.sqrt(now) * MEAN
        if sampler == "ddpm":
            on_clean = math.sqrt(then) * betas[k] / (1 - now)
            on_noisy = math.sqrt(1 - betas[k]) * (1 - then) / (1 - now)
            noise = betas[k] * (1 - then) / (1 - now)
        else:
            ratio = math.sqrt((1 - then) / (1 - now))
            on_clean, on_noisy = math.sqrt(then) - ratio * math.sqrt(now), ratio
            noise = 0.0
        slope = on_clean * gain + on_noisy
        mean, variance = slope * mean + on_clean * offset, slope**2 * variance + noise
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
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


def test_predicting_clean_actions_trains_on_clean_actions():
    action, noise = torch.randn(2, 2), torch.randn(2, 2)
    assert small_module(prediction="x0").target(action, noise) is action
    assert small_module().target(action, noise) is noise


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_samples_lie_in_range_and_carry_gradients_through_every_step(sampler):
    module = small_module(sampler=sampler)
    steps = []
    module.score_network.register_forward_hook(
        lambda _, inputs, output: steps.append((inputs[0][0, -1].item(), output))
    )
    condition = torch.randn(32, 3, requires_grad=True)
    action = module.sample(condition)
    assert action.abs().max() <= 1
    assert [step for step, _ in steps] == [4, 3, 2, 1, 0]
    grads = torch.autograd.grad(action.sum(), [condition, *(output for _, output in steps)])
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize(("steps", "path"), [(1, [4]), (2, [4, 0]), (3, [4, 2, 0])])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_fewer_steps_skip_evenly(steps, path, sampler):
    module = small_module(sampling_steps=steps, sampler=sampler)
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


class TestActor:
    def test_default_keys(self):
        actor = DiffusionActor(action_dim=2, condition_dim=3 + 5, hidden=(16,))
        data = TensorDict(
            {"observation": torch.randn(4, 3), "prompt_embedding": torch.randn(4, 5)}, [4]
        )
        assert actor.in_keys == ["observation", "prompt_embedding"]
        assert actor(data)["action"].shape == (4, 2)

    def test_nested_keys_and_a_network_of_ones_own(self):
        actor = DiffusionActor(
            2,
            score_network=nn.Linear(2 + 3 + 1, 2),
            in_keys=[("agent", "state")],
            out_keys=[("agent", "action")],
        )
        data = TensorDict({("agent", "state"): torch.randn(4, 3)}, [4])
        assert actor(data)["agent", "action"].shape == (4, 2)

    def test_a_network_must_come_from_somewhere(self):
        with pytest.raises(ValueError, match="condition_dim"):
            DiffusionActor(2)

    def test_the_spec_sets_the_range(self):
        spec = Bounded(-0.1, 0.1, shape=(2,))
        actor = DiffusionActor(2, 3, in_keys=["observation"], spec=spec, hidden=(16,))
        action = actor(TensorDict({"observation": torch.randn(64, 3)}, [64]))["action"]
        assert actor.spec["action"].is_in(action)
        assert action.abs().max().item() == pytest.approx(0.1)
        uneven = Bounded(-torch.ones(2), torch.tensor([1.0, 2.0]))
        with pytest.raises(ConfigError, match="ActionScaling"):
            DiffusionActor(2, 3, spec=uneven)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype_moves(self, dtype):
        actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,)).to(dtype)
        action = actor(TensorDict({"observation": torch.randn(8, 3, dtype=dtype)}, [8]))["action"]
        assert action.dtype == dtype
        assert actor.module.schedule.betas.dtype in (torch.float32, torch.float64)

    def test_it_trains_under_torchrls_loss(self):
        from torchrl.objectives import DiffusionBCLoss

        actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(16,))
        loss = DiffusionBCLoss(actor)
        data = TensorDict({"observation": torch.randn(8, 3), "action": torch.rand(8, 2)}, [8])
        loss(data)["loss_diffusion_bc"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "dpm"}, "'dpm'.*ddpm, ddim"),
        ({"prediction": "v"}, "'v'.*epsilon, x0"),
        ({"schedule": "vpp"}, "'vpp'.*vp, linear, cosine"),
        ({"sampling_steps": 6}, "6 reverse steps asked of a diffusion of 5"),
        ({"sampling_steps": 0}, "0 reverse steps"),
    ],
)
def test_mistakes_are_named_when_built(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        small_module(**kwargs)
