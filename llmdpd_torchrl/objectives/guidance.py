"""Ways in which critics guide an actor: which action of its own they judge."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmdpd_torchrl.utils.errors import ConfigError


class Denoised(NamedTuple):
    """What the denoising loss has computed in its forward pass.

    Attributes:
        step: sampled steps k, ``[*]``.
        noisy: actions a_k, ``[*, A]``.
        output: the denoiser's, ``[*, A]``.
    """

    step: Tensor
    noisy: Tensor
    output: Tensor


class Guidance(nn.Module, abc.ABC):
    """The action a^0 through which Q's gradient reaches the actor.

    Attributes:
        learns: whether it has something to learn also where the critics weigh nothing.
    """

    learns = False

    @abc.abstractmethod
    def forward(
        self, process: Any, condition: Callable[[], Tensor], denoised: Denoised
    ) -> tuple[Tensor, Tensor | None]:
        """Propose an action.

        Args:
            process: the actor's :class:`~llmdpd_torchrl.modules.DiffusionModule`, with its current
                weights.
            condition: computes the actor's condition ``[*, C]``, without the prompt's gradient.
            denoised: of L_d, with the prompt's gradient.

        Returns:
            a^0 ``[*, A]``, and an error ``[*, A]`` that the actor's loss gains, if there is one.
        """

    def next_action(self, process: Any, condition: Tensor, num_steps: int | None) -> Tensor:
        """The action ``[*, A]`` that a target's value is of; by default a sample."""
        return process.sample(condition, num_steps=num_steps)


class ChainGuidance(Guidance):
    """Through all reverse steps of a sample (Diffusion-QL)."""

    def forward(
        self, process: Any, condition: Callable[[], Tensor], denoised: Denoised
    ) -> tuple[Tensor, Tensor | None]:
        """Sample an action."""
        return process.sample(condition()), None


class OneStepGuidance(Guidance):
    """Through the clean action that L_d's forward pass predicts (EDP, Kang et al. 2023)."""

    def forward(
        self, process: Any, condition: Callable[[], Tensor], denoised: Denoised
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the action in one step."""
        return process.predict_clean(denoised.noisy, denoised.step, denoised.output), None


class DistilledGuidance(Guidance):
    """Through a network that acts in one step and is distilled from the diffusion (FQL).

    From `"Flow Q-Learning" <https://arxiv.org/abs/2502.02538>`_, with a diffusion's deterministic
    reverse process in place of a flow. The diffusion itself clones, untouched by the critics.

    Args:
        network: from condition ``[*, C]`` and latent ``[*, A]`` to an action; what acts in the end.
        weight: α of the squared distance to what the diffusion makes of the same latent.

    Raises:
        ConfigError: if the weight is not above 0.
    """

    learns = True

    def __init__(self, network: nn.Module, weight: float = 10.0) -> None:
        super().__init__()
        if not weight > 0:
            raise ConfigError(f"the distillation's weight is {weight}: it must be above 0")
        self.network = network
        self.weight = weight

    def forward(
        self, process: Any, condition: Callable[[], Tensor], denoised: Denoised
    ) -> tuple[Tensor, Tensor | None]:
        """Act in one step, and compare with the diffusion's action."""
        given = condition()
        latent = torch.randn_like(denoised.noisy)
        action = self.network(given, latent)
        with torch.no_grad():
            wanted = process.sample(given, deterministic=True, latent=latent)
        low, high = process.action_bounds
        return action.clamp(low, high), self.weight * (action - wanted).square()

    def next_action(self, process: Any, condition: Tensor, num_steps: int | None) -> Tensor:
        """The network's own."""
        latent = torch.randn_like(condition[..., : process.action_dim])
        return self.network(condition, latent).clamp(*process.action_bounds)


GUIDANCE: Mapping[str, type[Guidance]] = {"chain": ChainGuidance, "one_step": OneStepGuidance}
"""By name, those that need nothing else."""
