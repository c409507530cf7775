"""Diffusion-QL as a textbook has it: plain PyTorch, what the benchmarks compare with.

Written from the equations of Wang et al. (2023) in the way that such code is commonly written: a
gather from a table per constant and step, noise also for the last step (and then masked out), one
optimizer a network, target networks averaged in a loop over parameters. Nothing is slowed down on
purpose and nothing is tuned; ``tests/benchmarks/speed/test_measurements.py`` shows that it
computes the same losses as :class:`~llmdpd_torchrl.objectives.DiffusionQLLoss`, given the
same weights and random numbers.
"""

from __future__ import annotations

import copy
import math
import random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Batch", "Critic", "DiffusionPolicy", "TextbookDiffusionQL"]


class Batch(NamedTuple):
    """Transitions: s [B, O], a [B, A], s' [B, O], r [B, 1] and 1 - terminated [B, 1]."""

    state: Tensor
    action: Tensor
    next_state: Tensor
    reward: Tensor
    not_done: Tensor


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the step, [B] to [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, step: Tensor) -> Tensor:
        """Embed."""
        half = self.dim // 2
        exponents = torch.arange(half, device=step.device) * (-math.log(10_000) / (half - 1))
        angles = step[:, None] * exponents.exp()[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Denoiser(nn.Module):
    """ε_θ(a_k, s, k): a Mish MLP with an embedded step, 16 -> 32 -> 16."""

    def __init__(self, state_dim: int, action_dim: int, width: int = 256) -> None:
        super().__init__()
        self.time = nn.Sequential(
            SinusoidalEmbedding(16), nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16)
        )
        self.network = nn.Sequential(
            nn.Linear(action_dim + state_dim + 16, width),
            nn.Mish(),
            nn.Linear(width, width),
            nn.Mish(),
            nn.Linear(width, width),
            nn.Mish(),
            nn.Linear(width, action_dim),
        )

    def forward(self, noisy: Tensor, step: Tensor, state: Tensor) -> Tensor:
        """Predict the noise [B, A]."""
        return self.network(torch.cat([noisy, state, self.time(step)], dim=1))


class Critic(nn.Module):
    """Two Q networks over state and action."""

    def __init__(self, state_dim: int, action_dim: int, width: int = 256) -> None:
        super().__init__()
        self.q1, self.q2 = (
            nn.Sequential(
                nn.Linear(state_dim + action_dim, width),
                nn.Mish(),
                nn.Linear(width, width),
                nn.Mish(),
                nn.Linear(width, width),
                nn.Mish(),
                nn.Linear(width, 1),
            )
            for _ in range(2)
        )

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both values, [B, 1] each."""
        inputs = torch.cat([state, action], dim=-1)
        return self.q1(inputs), self.q2(inputs)


def _gather(table: Tensor, step: Tensor) -> Tensor:
    return table.gather(-1, step).reshape(-1, 1)


class DiffusionPolicy(nn.Module):
    """DDPM over one action with a variance-preserving schedule, noise prediction and clipped x0."""

    sqrt_bar: Tensor
    sqrt_one_minus_bar: Tensor
    sqrt_recip_bar: Tensor
    sqrt_recip_bar_minus_one: Tensor
    log_variance: Tensor
    mean_clean: Tensor
    mean_noisy: Tensor

    def __init__(self, state_dim: int, action_dim: int, num_steps: int, width: int = 256) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.num_steps = num_steps
        self.model = Denoiser(state_dim, action_dim, width)
        k = torch.arange(1, num_steps + 1, dtype=torch.float64)
        betas = 1 - torch.exp(-0.1 / num_steps - 0.5 * 9.9 * (2 * k - 1) / num_steps**2)
        alphas = 1 - betas
        bar = alphas.cumprod(0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        variance = betas * (1 - previous) / (1 - bar)
        for name, table in {
            "sqrt_bar": bar.sqrt(),
            "sqrt_one_minus_bar": (1 - bar).sqrt(),
            "sqrt_recip_bar": (1 / bar).sqrt(),
            "sqrt_recip_bar_minus_one": (1 / bar - 1).sqrt(),
            "log_variance": variance.clamp(min=1e-20).log(),
            "mean_clean": betas * previous.sqrt() / (1 - bar),
            "mean_noisy": (1 - previous) * alphas.sqrt() / (1 - bar),
        }.items():
            self.register_buffer(name, table.to(torch.get_default_dtype()))

    def predict_clean(self, noisy: Tensor, step: Tensor, state: Tensor) -> Tensor:
        """x0 behind a noisy action, clipped."""
        noise = self.model(noisy, step, state)
        clean = (
            _gather(self.sqrt_recip_bar, step) * noisy
            - _gather(self.sqrt_recip_bar_minus_one, step) * noise
        )
        return clean.clamp(-1, 1)

    def reverse_step(self, noisy: Tensor, step: Tensor, state: Tensor) -> Tensor:
        """Draw x_(k-1) from the posterior, given x_k."""
        clean = self.predict_clean(noisy, step, state)
        mean = _gather(self.mean_clean, step) * clean + _gather(self.mean_noisy, step) * noisy
        noise = torch.randn_like(noisy)
        not_last = (step != 0).to(noisy.dtype).reshape(-1, 1)
        return mean + not_last * (0.5 * _gather(self.log_variance, step)).exp() * noise

    def sample(self, state: Tensor) -> Tensor:
        """One action per state [B, A], through all K reverse steps."""
        batch = state.shape[0]
        action = torch.randn((batch, self.action_dim), dtype=state.dtype, device=state.device)
        for i in reversed(range(self.num_steps)):
            step = torch.full((batch,), i, device=state.device, dtype=torch.long)
            action = self.reverse_step(action, step, state)
        return action.clamp(-1, 1)

    def loss(self, action: Tensor, state: Tensor) -> Tensor:
        """L_d: the mean squared error of the predicted noise."""
        step = torch.randint(0, self.num_steps, (action.shape[0],), device=action.device)
        noise = torch.randn_like(action)
        noisy = _gather(self.sqrt_bar, step) * action
        noisy = noisy + _gather(self.sqrt_one_minus_bar, step) * noise
        return F.mse_loss(self.model(noisy, step, state), noise)


class TextbookDiffusionQL:
    """Networks, targets and optimizers, and one update of all of them.

    Args:
        state_dim: O.
        action_dim: A.
        num_steps: K.
        width: of all hidden layers.
        eta: weight of the guidance.
        gamma: discount.
        tau: share of the source in each update of a target.
        learning_rate: of both optimizers.
        max_grad_norm: per network.
        ema_period: updates between two of the actor's target.
        ema_start: updates before which the actor's target is a copy.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        num_steps: int = 5,
        width: int = 256,
        eta: float = 1.0,
        gamma: float = 0.99,
        tau: float = 0.005,
        learning_rate: float = 3e-4,
        max_grad_norm: float = 10.0,
        ema_period: int = 5,
        ema_start: int = 1000,
        device: torch.device | str = "cpu",
    ) -> None:
        self.actor = DiffusionPolicy(state_dim, action_dim, num_steps, width).to(device)
        self.critic = Critic(state_dim, action_dim, width).to(device)
        self.actor_target = copy.deepcopy(self.actor)
        self.critic_target = copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning_rate)
        self.eta, self.gamma, self.tau = eta, gamma, tau
        self.max_grad_norm = max_grad_norm
        self.ema_period, self.ema_start = ema_period, ema_start
        self.updates = 0

    def critic_loss(self, batch: Batch) -> Tensor:
        """Both critics' squared errors against the clipped double-Q target."""
        current1, current2 = self.critic(batch.state, batch.action)
        with torch.no_grad():
            next_action = self.actor_target.sample(batch.next_state)
            target1, target2 = self.critic_target(batch.next_state, next_action)
            target = batch.reward + batch.not_done * self.gamma * torch.min(target1, target2)
        return F.mse_loss(current1, target) + F.mse_loss(current2, target)

    def actor_loss(self, batch: Batch) -> Tensor:
        """L_d + η L_q; a random critic judges, the other one scales."""
        bc_loss = self.actor.loss(batch.action, batch.state)
        q1, q2 = self.critic(batch.state, self.actor.sample(batch.state))
        if random.random() > 0.5:
            q_loss = -q1.mean() / q2.abs().mean().detach()
        else:
            q_loss = -q2.mean() / q1.abs().mean().detach()
        return bc_loss + self.eta * q_loss

    def update(self, batch: Batch) -> None:
        """One update: critics, actor, targets."""
        critic_loss = self.critic_loss(batch)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        nn.utils.clip_grad_norm_(self.critic.parameters(), self.max_grad_norm)
        self.critic_optimizer.step()

        actor_loss = self.actor_loss(batch)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), self.max_grad_norm)
        self.actor_optimizer.step()

        self.updates += 1
        if self.updates % self.ema_period == 0:
            if self.updates < self.ema_start:
                self.actor_target.load_state_dict(self.actor.state_dict())
            else:
                self._average(self.actor, self.actor_target)
        self._average(self.critic, self.critic_target)

    def _average(self, source: nn.Module, target: nn.Module) -> None:
        for parameter, slow in zip(source.parameters(), target.parameters(), strict=True):
            slow.data.copy_(self.tau * parameter.data + (1 - self.tau) * slow.data)
