from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmdpd_torchrl.modules import (
    ACTIVATIONS,
    PREDICTIONS,
    SAMPLERS,
    DiffusionActor,
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


def residual(steps=5, schedule="vp", seed=0, width=2):
    """An actor of two-dimensional actions; its base and bound are columns 1 to 5 of 7."""
    torch.manual_seed(seed)
    return DiffusionActor(
        width, 7, base=BASE, num_steps=steps, schedule=schedule, prediction="x0", hidden=(16,),
        in_keys=["observation"],
    )  # fmt: skip


def conditions(rows, bound=0.3):
    condition = torch.rand(rows, 7) * 2 - 1
    condition[:, 3:5] = bound
    return condition


@pytest.mark.parametrize(("steps", "schedule"), [(5, "vp"), (20, "linear")])
def test_its_network_denoises_the_residual(steps, schedule):
    """What it reads is the residual with the action's noise; what it says, b + r tanh(y)."""
    module = residual(steps, schedule).module.double()
    denoiser = module.score_network
    condition, action = conditions(6).double(), torch.rand(6, 2).double() * 2 - 1
    base, bound = condition[:, BASE], condition[:, 3:5]
    step = torch.randint(steps, (6,))
    torch.manual_seed(1)
    noisy, _ = module.add_noise(action, step)
    torch.manual_seed(1)
    noisy_residual, _ = module.add_noise(action - base, step)
    column = step.unsqueeze(-1).double()
    output = denoiser.network(torch.cat([noisy_residual, condition, column], -1))
    found = module.denoise(noisy, condition, step)
    torch.testing.assert_close(found, base + bound * output.tanh())


def test_preconditioning_a_residual_changes_nothing():
    module = residual().module.double()
    condition, noisy = torch.randn(3, 6, 7).double(), torch.randn(3, 6, 2).double()
    for step, layer in enumerate(module.score_network.precondition(condition, range(5))):
        direct = module.denoise(noisy, condition, step)
        torch.testing.assert_close(module.score_network(noisy, layer), direct)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_predicts_nothing_copies_the_base(sampler, deterministic):
    actor = residual()
    actor.module.sampler = sampler
    for parameter in actor.parameters():
        torch.nn.init.zeros_(parameter)
    condition = conditions(50)
    actions = actor.module.sample(condition, deterministic=deterministic)
    torch.testing.assert_close(actions, condition[:, BASE], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bound", [0.05, 0.3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_actions_stay_within_the_bound_and_in_range(sampler, bound):
    actor = residual()
    actor.module.sampler = sampler
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    condition = conditions(500, bound)
    actions = actor.module.sample(condition)
    off = (actions - condition[:, BASE]).abs()
    assert off.max() <= bound + 1e-5
    assert off.max() > 0.9 * bound
    assert actions.abs().max() <= 1.0


def test_a_bound_of_one_about_zero_reaches_anything():
    actor = residual()
    for parameter in actor.parameters():
        torch.nn.init.zeros_(parameter)
    condition = torch.zeros(1, 7)
    condition[:, 3:5] = 1.0
    last = actor.module.score_network.network.mlp[-1]
    for aim in ((0.99, -0.99), (-0.5, 0.2)):
        with torch.no_grad():
            last.bias.copy_(torch.tensor(aim).atanh())
        action = actor.module.sample(condition)[0]
        torch.testing.assert_close(action, torch.tensor(aim), rtol=0, atol=1e-4)


@pytest.mark.parametrize("base", [slice(0, 3), slice(4, 6), slice(-2, 0)])
def test_a_base_that_is_no_action_is_refused(base):
    with pytest.raises(ConfigError, match="the base action is columns"):
        ResidualDenoiser(MLPDenoiser(2, 7), base, 5)


def test_a_network_of_another_kind_has_no_base():
    with pytest.raises(ConfigError, match="needs an MLPDenoiser, got Linear"):
        DiffusionActor(2, score_network=torch.nn.Linear(7, 2), base=BASE, prediction="x0")


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "x0"])
def test_a_residual_is_one_of_clean_actions(prediction):
    with pytest.raises(ConfigError, match=f"^prediction is '{prediction}': .*, use x0$"):
        DiffusionActor(2, 7, base=BASE, prediction=prediction)


def retrieving(**changes):
    torch.manual_seed(0)
    config = NetworkConfig(prompt="trajectory", hidden=[16, 16], **changes)
    actor = make_networks(config).actor
    context = torch.randn(200, config.context_layout.width)
    parts = config.context_layout.parts
    context[:, parts["usable"]] = (torch.rand(200, config.context_layout.suggestions) < 0.7).float()
    for name in ("suggestions", "grips"):
        context[:, parts[name]] = context[:, parts[name]].clamp(-1, 1)
    return actor, context


@pytest.mark.parametrize("max_residual", [0.1, 0.3])
def test_an_actor_that_retrieves_follows_suggestions_where_the_state_is_hidden(max_residual):
    actor, context = retrieving(max_residual=max_residual)
    for parameter in actor.module.score_network.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    state, gate = torch.randn(200, 39), torch.tensor([0.0, 1.0]).repeat(100).unsqueeze(-1)
    actions = actor.module.sample(actor.module.condition(state, gate, context))
    base = actor.module.conditioner.attention(context)
    off, shut = (actions - base).abs(), (gate == 0).squeeze(-1)
    assert off[shut].max() <= max_residual + 1e-5
    assert off[~shut].max() > 0.9


def test_its_attention_is_trained_by_the_loss_where_the_state_is_hidden():
    actor, context = retrieving()
    state = torch.randn(200, 39)
    grads = []
    for gate in (0.0, 1.0):
        actor.zero_grad()
        condition = actor.module.condition(state, torch.full((200, 1), gate), context)
        step = torch.randint(5, (200,))
        action = torch.rand(200, 4)
        noisy, _ = actor.module.add_noise(action, step)
        (actor.module.denoise(noisy, condition, step) - action).square().mean().backward()
        grads.append([p.grad for p in actor.module.conditioner.attention.parameters()])
    assert all(grad.any() for grad in grads[0])
    assert not any(grad.any() for grad in grads[1] if grad is not None)


def test_without_a_bound_an_actor_that_retrieves_has_no_base():
    actor, context = retrieving(max_residual=None, prediction="v")
    assert not isinstance(actor.module.score_network, ResidualDenoiser)
    condition = actor.module.condition(torch.randn(200, 39), torch.zeros(200, 1), context)
    assert actor.module.sample(condition).shape == (200, 4)
