"""What a loss asks of a diffusion actor's inner module, be it this package's or TorchRL's."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["DiffusionProcess", "diffusion_process"]


class DiffusionProcess(Protocol):
    """The part of :class:`~llmdpd_torchrl.modules.DiffusionModule` that losses use.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor
        >>> process = diffusion_process(DiffusionActor(2, 3, num_steps=5, in_keys=["observation"]))
        >>> process.num_steps
        5
    """

    num_steps: int
    action_dim: int
    action_bounds: tuple[float, float] | None
    """Range that clean actions are clipped to, if they are."""

    def condition(self, *inputs: Tensor) -> Tensor:
        """Make the condition vector [*, C]."""

    def add_noise(self, action: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Noise clean actions; return the noisy actions and the noise."""

    def denoise(self, noisy: Tensor, condition: Tensor, step: Tensor) -> Tensor:
        """Run the score network."""

    def target(self, action: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """What the score network should have output."""

    def predict_clean(self, noisy: Tensor, step: Tensor, output: Tensor) -> Tensor:
        """Turn the score network's output into a clean action."""

    def sample(self, condition: Tensor, *, num_steps: int | None = None) -> Tensor:
        """Draw one action per row of the condition."""


def diffusion_process(actor: TensorDictModule) -> DiffusionProcess:
    """Return the diffusion inside ``actor``, adapted if the actor is TorchRL's.

    Raises:
        TypeError: if the actor holds no diffusion module.
    """
    module = getattr(actor, "module", None)
    if not all(hasattr(module, name) for name in ("num_steps", "add_noise", "score_network")):
        raise TypeError(
            f"actor_network must be a DiffusionActor of llmdpd_torchrl or torchrl, got "
            f"{type(actor).__name__}"
        )
    if all(hasattr(module, name) for name in ("condition", "predict_clean", "sample")):
        return cast(DiffusionProcess, module)
    return _TorchRLProcess(cast(Any, module))


class _TorchRLProcess:
    """TorchRL's module predicts noise, never clips, and knows one way to sample: its forward."""

    action_bounds: tuple[float, float] | None = None

    def __init__(self, module: Any) -> None:
        self.module = module
        self.num_steps: int = module.num_steps
        self.action_dim: int = module.action_dim

    def condition(self, *inputs: Tensor) -> Tensor:
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)

    def add_noise(self, action: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.add_noise(action, step)

    def denoise(self, noisy: Tensor, condition: Tensor, step: Tensor) -> Tensor:
        column = step.to(noisy.dtype).unsqueeze(-1)
        return self.module.score_network(torch.cat([noisy, condition, column], dim=-1))

    def target(self, action: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        return noise

    def predict_clean(self, noisy: Tensor, step: Tensor, output: Tensor) -> Tensor:
        alpha_bar = self.module.alphas_cumprod[step].unsqueeze(-1)
        return ((noisy - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()).to(noisy.dtype)

    def sample(self, condition: Tensor, *, num_steps: int | None = None) -> Tensor:
        if num_steps not in (None, self.num_steps):
            raise ConfigError(
                "torchrl's DiffusionActor always takes all its reverse steps: leave "
                "target_sampling_steps unset or use llmdpd_torchrl's DiffusionActor"
            )
        return self.module(condition)
