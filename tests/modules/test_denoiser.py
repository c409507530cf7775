from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmdpd_torchrl.modules import (
    ACTIVATIONS,
    PREDICTIONS,
    DiffusionActor,
    DiffusionModule,
    MLPDenoiser,
    NetworkConfig,
    ResidualDenoiser,
    make_networks,
)
from llmdpd_torchrl.modules.denoiser import SinusoidalTimeEmbedding
from llmdpd_torchrl.utils.errors import ConfigError

BASE = slice(1, 3)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_name_builds_a_module(name):
    assert MLPDenoiser(2, 3, activation=name)(torch.zeros(5, 6)).shape == (5, 2)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'swish'.*mish, relu, silu, gelu, tanh"):
        MLPDenoiser(2, 3, activation="swish")


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
    assert sum(isinstance(m, nn.Mish) for m in denoiser.modules()) == 4


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_any_batch_shape(batch):
    denoiser = MLPDenoiser(2, 3, hidden=(8,), activation="relu")
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
    denoiser = MLPDenoiser(2, 3, hidden=hidden).double()
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


def residual_and_plain(prediction, steps=5, schedule="vp"):
    torch.manual_seed(0)
    network = MLPDenoiser(2, 4, hidden=(16,))
    residual = ResidualDenoiser(network, BASE, steps, schedule, prediction)
    bounds = (-1e9, 1e9)  # clipping is of actions, not of differences
    options = {"num_steps": steps, "schedule": schedule, "prediction": prediction}
    of_actions = DiffusionModule(residual, 2, action_bounds=bounds, **options).double()
    of_differences = DiffusionModule(network, 2, action_bounds=bounds, **options).double()
    return of_actions, of_differences


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("steps", "schedule"), [(5, "vp"), (20, "linear")])
def test_it_is_a_diffusion_of_the_differences(prediction, steps, schedule):
    """Loss and samples are those that the inner network gives for a - b."""
    of_actions, of_differences = residual_and_plain(prediction, steps, schedule)
    condition, action = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    base = condition[:, BASE]
    step = torch.randint(steps, (6,))
    torch.manual_seed(1)
    noisy, noise = of_actions.add_noise(action, step)
    torch.manual_seed(1)
    noisy_difference, _ = of_differences.add_noise(action - base, step)
    errors = [
        module.denoise(x, condition, step) - module.target(a, noise, step)
        for module, x, a in (
            (of_actions, noisy, action),
            (of_differences, noisy_difference, action - base),
        )
    ]
    torch.testing.assert_close(errors[0], errors[1])
    latent = torch.randn(6, 2).double()
    samples = []
    for module, start, offset in (
        (of_actions, latent, 0.0),
        (of_differences, latent - of_actions.schedule.alpha_bar[-1] ** 0.5 * base, base),
    ):
        generator = torch.Generator().manual_seed(2)
        samples.append(offset + module.sample(condition, latent=start, generator=generator))
    torch.testing.assert_close(samples[0], samples[1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_preconditioning_changes_nothing(prediction):
    of_actions, _ = residual_and_plain(prediction)
    condition, noisy = torch.randn(3, 6, 4).double(), torch.randn(3, 6, 2).double()
    for step, layer in enumerate(of_actions.score_network.precondition(condition, range(5))):
        direct = of_actions.denoise(noisy, condition, step)
        torch.testing.assert_close(of_actions.score_network(noisy, layer), direct)


def test_a_network_that_predicts_nothing_copies_the_base():
    actor = DiffusionActor(2, 4, base=BASE, prediction="v", in_keys=["observation"], hidden=(8,))
    for parameter in actor.parameters():
        torch.nn.init.zeros_(parameter)
    condition = torch.rand(50, 4) - 0.5
    actions = actor.module.sample(condition, deterministic=True)
    untrained = DiffusionActor(2, 4, prediction="v", in_keys=["observation"], hidden=(8,))
    for parameter in untrained.parameters():
        torch.nn.init.zeros_(parameter)
    centre = untrained.module.sample(condition, deterministic=True)
    # Both shrink towards what they are about; only one of them is about the base.
    assert (actions - condition[:, BASE]).abs().max() < 0.2
    assert (centre - condition[:, BASE]).abs().max() > 0.4


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_the_bases_movement_is_never_cancelled(share):
    network = MLPDenoiser(3, 4, hidden=(8,))
    denoiser = ResidualDenoiser(network, slice(1, 4), 5, movement=2, min_base_fraction=share)
    condition, action = torch.randn(2000, 4), torch.randn(2000, 3)
    base, limited = condition[:, 1:4], denoiser.limit(action, condition)
    along = (limited * base)[:, :2].sum(-1) / base[:, :2].square().sum(-1)
    assert along.min() > share - 1e-3
    enough = (action * base)[:, :2].sum(-1) / base[:, :2].square().sum(-1) >= share
    assert 0.1 < enough.float().mean() < 0.9
    torch.testing.assert_close(limited[enough], action[enough])
    # Only along the base is anything changed, and only of the movement.
    assert torch.equal(limited[:, 2], action[:, 2])
    across = torch.stack([-base[:, 1], base[:, 0]], -1)
    torch.testing.assert_close(
        (limited[:, :2] * across).sum(-1), (action[:, :2] * across).sum(-1), rtol=1e-3, atol=1e-3
    )
    halves = denoiser.limit(action.half(), torch.zeros(2000, 4).half())
    assert torch.equal(halves, action.half())
    several = denoiser.limit(action.expand(3, -1, -1), condition)  # draws of each row
    assert torch.equal(several, limited.expand(3, -1, -1))
    nothing = torch.zeros(2000, 4)
    assert torch.equal(denoiser.limit(action, nothing), action)


def test_samples_are_limited_and_stay_in_range():
    actor = DiffusionActor(
        2, 4, base=BASE, movement=2, prediction="v", in_keys=["observation"], hidden=(8,)
    )
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    condition = torch.rand(500, 4) * 2 - 1
    actions = actor.module.sample(condition)
    base = condition[:, BASE]
    # 0.75 of the way, unless the range of actions ends before.
    along = (actions * base).sum(-1) / base.square().sum(-1)
    inside = (actions.abs() < 1.0).all(-1)
    assert inside.any()
    assert along[inside].min() > 0.75 - 1e-3
    assert actions.abs().max() <= 1.0


@pytest.mark.parametrize("options", [{"movement": 3}, {"min_base_fraction": 1.5}, {"movement": -1}])
def test_an_impossible_limit_is_refused(options):
    with pytest.raises(ConfigError, match="movement is"):
        ResidualDenoiser(MLPDenoiser(2, 4), BASE, 5, **options)


@pytest.mark.parametrize("base", [slice(0, 3), slice(3, 5), slice(-2, 0)])
def test_a_base_that_is_no_action_is_refused(base):
    with pytest.raises(ConfigError, match="the base action is columns"):
        ResidualDenoiser(MLPDenoiser(2, 4), base, 5)


def test_a_network_of_another_kind_has_no_base():
    with pytest.raises(ConfigError, match="needs an MLPDenoiser, got Linear"):
        DiffusionActor(2, score_network=torch.nn.Linear(7, 2), base=BASE)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_an_actor_that_retrieves_is_about_the_suggestion_where_the_state_is_hidden(gate):
    config = NetworkConfig(prompt="trajectory", hidden=[8])
    actor = make_networks(config).actor
    context = torch.randn(3, config.context_parts["goal_correction"].stop)
    condition = actor.module.condition(torch.randn(3, 39), torch.full((3, 1), gate), context)
    base = condition[:, actor.module.score_network.base]
    suggestion = context[:, config.context_parts["suggested_action"]]
    assert torch.equal(base, suggestion * (1 - gate))
