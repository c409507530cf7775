"""The loss against a second derivation in NumPy, and against a task with a known best policy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from llmdpd_torchrl.modules import PREDICTIONS, DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss
from llmdpd_torchrl.trainers.optimization import TargetUpdater

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, TEXT, EMBED, BATCH, STEPS = 3, 2, 6, 5, 11, 5
GAMMA = 0.875  # exact in float32, in which the value estimator keeps it


# ---------------------------------------------------------------------- the second derivation


def mish(x):
    return x * np.tanh(np.logaddexp(0, x))


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def mlp(weights, name, x, layers=3):
    for i in range(layers):
        x = linear(weights, f"{name}.{2 * i}", x)
        if i < layers - 1:
            x = mish(x)
    return x


def schedule():
    k = np.arange(1, STEPS + 1)
    beta = 1 - np.exp(-0.1 / STEPS - 0.5 * (10 - 0.1) * (2 * k - 1) / STEPS**2)
    return beta, np.cumprod(1 - beta)


def denoise(weights, noisy, condition, step):
    frequency = np.exp(-np.log(10_000) * np.arange(8) / 7)
    angle = step[:, None] * frequency
    time = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    name = "module.score_network"
    time = linear(weights, f"{name}.time_embedding.1", time)
    time = linear(weights, f"{name}.time_embedding.3", mish(time))
    return mlp(weights, f"{name}.mlp", np.concatenate([noisy, condition, time], -1))


def clean(noisy, step, output, alpha_bar, prediction):
    now = alpha_bar[step][:, None]
    guess = {
        "epsilon": (noisy - np.sqrt(1 - now) * output) / np.sqrt(now),
        "x0": output,
        "v": np.sqrt(now) * noisy - np.sqrt(1 - now) * output,
    }
    return np.clip(guess[prediction], -1, 1)


def sample(weights, condition, randn, prediction):
    """DDPM with clipped x0 and the posterior's mean and variance."""
    beta, alpha_bar = schedule()
    action = randn()
    for k in reversed(range(STEPS)):
        step = np.full(len(condition), k)
        output = denoise(weights, action, condition, step)
        guess = clean(action, step, output, alpha_bar, prediction)
        now, then = alpha_bar[k], alpha_bar[k - 1] if k else 1.0
        mean = np.sqrt(then) * beta[k] / (1 - now) * guess
        mean += np.sqrt(1 - beta[k]) * (1 - then) / (1 - now) * action
        std = np.sqrt(beta[k] * (1 - then) / (1 - now))
        action = mean + (std * randn() if k else 0)
    return action


def value(weights, observation, action, z):
    return mlp(weights, "module.mlp", np.concatenate([observation, action, z], -1))[:, 0]


def state(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("vmap", [True, False])
@pytest.mark.parametrize("guidance", ["chain", "one_step"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_term_equals_its_second_derivation(prediction, guidance, vmap):
    torch.manual_seed(0)
    prompt = TensorDictModule(
        nn.Linear(TEXT, EMBED), in_keys=[("prompt", "text")], out_keys=["prompt_embedding"]
    ).double()
    actor = DiffusionActor(ACT, OBS + EMBED, hidden=(16, 16), prediction=prediction).double()
    critics = [c.double() for c in make_qvalue_networks(OBS, ACT, EMBED, hidden=(16, 16))]
    target_actor = copy.deepcopy(actor)
    target_critics = copy.deepcopy(critics)
    loss = LLMDPDLoss(
        prompt,
        actor,
        critics,
        guidance=guidance,
        deactivate_vmap=not vmap,
        lmbda=0.25,
    )
    loss.make_value_estimator(gamma=GAMMA)
    with torch.no_grad():  # targets that differ from their sources
        for module in (target_actor, *target_critics):
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        stacked = TensorDict.from_modules(*target_critics)
        loss.target_qvalue_network_params.data.update_(stacked.data)
        loss.target_actor_network_params.data.update_(TensorDict.from_module(target_actor).data)
    data = TensorDict(
        {
            "observation": torch.randn(BATCH, OBS),
            "action": torch.rand(BATCH, ACT) * 2 - 1,
            ("prompt", "text"): torch.randn(BATCH, TEXT),
            ("next", "observation"): torch.randn(BATCH, OBS),
            ("next", "reward"): torch.randn(BATCH, 1),
        },
        [BATCH],
    ).double()
    terminated = torch.rand(BATCH, 1) < 0.4
    data["next", "terminated"] = data["next", "done"] = terminated

    torch.manual_seed(7)
    out = loss(data)

    torch.manual_seed(7)

    def randn():
        return torch.randn(BATCH, ACT, dtype=torch.float64).numpy()

    numpy = {key: data[key].double().numpy() for key in data.keys(True, True)}
    observation, action = numpy["observation"], numpy["action"]
    z = linear(state(prompt), "module", numpy["prompt", "text"])
    condition = np.concatenate([observation, z], -1)
    _, alpha_bar = schedule()
    actor_weights, critic_weights = state(actor), [state(c) for c in critics]

    step = torch.randint(0, STEPS, (BATCH,)).numpy()
    noise = randn()
    now = alpha_bar[step][:, None]
    noisy = np.sqrt(now) * action + np.sqrt(1 - now) * noise
    predicted = denoise(actor_weights, noisy, condition, step)
    sought = {
        "epsilon": noise,
        "x0": action,
        "v": np.sqrt(now) * noise - np.sqrt(1 - now) * action,
    }
    bc = np.mean((predicted - sought[prediction]) ** 2)

    if guidance == "chain":
        proposal = sample(actor_weights, condition, randn, prediction)
    else:
        proposal = clean(noisy, step, predicted, alpha_bar, prediction)
    i, j = torch.randperm(2).tolist()
    values = [value(w, observation, proposal, z) for w in critic_weights]
    merit = values[i].mean() / np.abs(values[j]).mean()

    after = np.concatenate([numpy["next", "observation"], z], -1)
    after_action = sample(state(target_actor), after, randn, prediction)
    following = numpy["next", "observation"]
    worst = np.min([value(state(c), following, after_action, z) for c in target_critics], axis=0)
    target = numpy["next", "reward"][:, 0] + GAMMA * (1 - numpy["next", "terminated"][:, 0]) * worst
    errors = [(value(w, observation, action, z) - target) ** 2 for w in critic_weights]

    expected = {
        "bc": bc,
        "guidance": merit,
        "loss_actor": bc - 0.25 * merit,
        "loss_qvalue": sum(e.mean() for e in errors),
        "target_value": target.mean(),
    }
    for key, number in expected.items():
        assert out[key].item() == pytest.approx(number, rel=1e-10, abs=1e-12), key
    np.testing.assert_allclose(data["td_error"].numpy(), np.maximum(*errors), rtol=1e-10)


@pytest.mark.parametrize("guidance", ["chain", "one_step"])
def test_the_actors_gradient_equals_a_difference_quotient(guidance):
    torch.manual_seed(0)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,)).double()
    critics = [c.double() for c in make_qvalue_networks(OBS, ACT, hidden=(16,))]
    with (
        torch.no_grad()
    ):  # The normaliser is a constant to the gradient: let the quotient's be one.
        critics[1].module.mlp[-1].weight.zero_()
        critics[1].module.mlp[-1].bias.fill_(0.5)
    loss = DiffusionQLLoss(actor, critics, guidance=guidance)
    data = TensorDict(
        {"observation": torch.randn(64, OBS), "action": torch.rand(64, ACT) * 2 - 1}, [64]
    ).double()

    def value() -> torch.Tensor:
        torch.manual_seed(seed)
        return loss.actor_loss(data)[0]

    def gradient_of_guidance() -> float:
        values = []
        for lmbda in (1.0, 0.0):
            loss.lmbda = lmbda
            (grad, *_) = torch.autograd.grad(value(), loss.actor_network_params.parameters())
            values.append(grad)
        loss.lmbda = 1.0
        return float((values[0] - values[1]).abs().sum())

    # A seed under which the other critic guides.
    seed = 0
    while gradient_of_guidance() == 0:
        seed += 1
    value().backward()
    for parameter in loss.actor_network_params.parameters():
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        index = int(grad.abs().argmax())
        original, width = flat[index].item(), 1e-6
        flat[index] = original + width
        above = value().item()
        flat[index] = original - width
        below = value().item()
        flat[index] = original
        assert grad[index].item() == pytest.approx((above - below) / (2 * width), rel=1e-4)


def test_cross_normalisation_draws_either_critic():
    torch.manual_seed(0)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16,))
    critics = make_qvalue_networks(OBS, ACT, hidden=(16,))
    with torch.no_grad():  # one always says -1, the other +3
        for critic, constant in zip(critics, (-1.0, 3.0), strict=True):
            critic.module.mlp[-1].weight.zero_()
            critic.module.mlp[-1].bias.fill_(constant)
    loss = DiffusionQLLoss(actor, critics)
    data = TensorDict({"observation": torch.randn(4, OBS), "action": torch.zeros(4, ACT)}, [4])
    seen = {round(loss.actor_loss(data)[1]["guidance"].item(), 4) for _ in range(40)}
    assert seen == {-0.3333, 3.0}


# ---------------------------------------------------------------------- what lambda does


def train_two_modes(lmbda: float, guidance: str) -> torch.Tensor:
    """Actions around -0.6 and +0.6 with equal odds; only positive ones are rewarded."""
    torch.manual_seed(0)
    actor = DiffusionActor(1, 1, in_keys=["observation"], hidden=(32, 32))
    critics = make_qvalue_networks(1, 1, hidden=(32, 32))
    loss = DiffusionQLLoss(actor, critics, lmbda=lmbda, guidance=guidance)
    updater = TargetUpdater(loss)
    optimizer = torch.optim.Adam(loss.parameters(), 5e-3)
    zeros, ended = torch.zeros(128, 1), torch.ones(128, 1, dtype=torch.bool)
    for _ in range(150):
        action = torch.where(torch.rand(128, 1) < 0.5, -0.6, 0.6) + 0.05 * torch.randn(128, 1)
        batch = TensorDict(
            {
                "observation": zeros,
                "action": action,
                ("next", "observation"): zeros,
                ("next", "reward"): (action > 0).float(),
                ("next", "done"): ended,
                ("next", "terminated"): ended,
            },
            [128],
        )
        out = loss(batch)
        optimizer.zero_grad()
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        optimizer.step()
        updater.step()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        return actor.module.sample(torch.zeros(4000, 1), generator=generator)


def test_lambda_moves_mass_to_the_better_of_two_modes():
    share = {}
    for lmbda, guidance in ((0.0, "chain"), (1.0, "chain"), (1.0, "one_step")):
        draws = train_two_modes(lmbda, guidance)
        share[lmbda, guidance] = (draws > 0).float().mean().item()
        if lmbda == 0:  # both modes, and not their mean alone
            assert ((draws > 0.3).float().mean() > 0.15) & ((draws < -0.3).float().mean() > 0.15)
    assert share[0.0, "chain"] == pytest.approx(0.5, abs=0.1)
    assert share[1.0, "chain"] > 0.9
    assert share[1.0, "one_step"] > 0.85
