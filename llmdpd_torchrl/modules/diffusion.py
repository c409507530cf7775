"""The diffusion policy: how an action is noised, and how one is made out of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.modules import SafeModule

from llmdpd_torchrl.errors import ConfigError
from llmdpd_torchrl.modules.denoiser import MLPDenoiser
from llmdpd_torchrl.modules.schedules import NoiseSchedule

__all__ = ["PREDICTIONS", "SAMPLERS", "DiffusionActor", "DiffusionModule"]

#: Length of the deterministic latent, in units of a typical draw's.
_LATENT_SCALE = 0.1
#: What the score network's output means.
PREDICTIONS = ("epsilon", "x0")


def _ddpm(noisy: Tensor, clean: Tensor, now: float, then: float) -> tuple[Tensor, float]:
    """Posterior q(x_then | x_now, x_0) of Ho et al. (2020), equation 7, for any stride."""
    alpha = now / then
    mean = math.sqrt(then) * (1 - alpha) / (1 - now) * clean
    mean = mean + math.sqrt(alpha) * (1 - then) / (1 - now) * noisy
    return mean, math.sqrt((1 - alpha) * (1 - then) / (1 - now))


def _ddim(noisy: Tensor, clean: Tensor, now: float, then: float) -> tuple[Tensor, float]:
    """Song et al. (2021), equation 12 with eta = 0; the noise is read off the clipped x0."""
    noise = (noisy - math.sqrt(now) * clean) / math.sqrt(1 - now)
    return math.sqrt(then) * clean + math.sqrt(1 - then) * noise, 0.0


#: Names that configurations may use, and the reverse step each takes: from (x_now, x_0, alpha_bar
#: now, alpha_bar then) to the mean and standard deviation of x_then.
SAMPLERS: Mapping[str, Callable[[Tensor, Tensor, float, float], tuple[Tensor, float]]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
}


class DiffusionModule(nn.Module):
    r"""A K-step diffusion over one action, given a condition vector.

    It offers what the module of TorchRL's :class:`~torchrl.modules.DiffusionActor` offers
    (``num_steps``, ``add_noise``, ``score_network`` on ``[noisy action | condition | step]``), so
    either can stand in the other's place in a loss, and adds what Q-guided training needs: samples
    that can be differentiated, and the clean action behind one noisy action.

    The condition is computed once per sample, not once per reverse step.

    Deterministic sampling (interaction types other than ``RANDOM``) runs DDIM from one fixed latent
    that all rows share, so that an action depends on its own inputs alone and repeats exactly. The
    reverse ODE carries quantiles to quantiles. A latent of typical length would take a fixed, far
    quantile of the demonstrators' noise in every state, and drive a controller off its goal; a zero
    latent takes the median, but sits on the border between two symmetric modes, where a mean over
    samples lies too. The fixed latent is a tenth of typical length: next to the median where there
    is one mode, and on one side where there are two.

    Args:
        score_network (nn.Module): maps [*, A + C + 1] to [*, A]; the last column is the step as a
            float in [0, K).
        action_dim (int): A.

    Keyword Args:
        conditioner (nn.Module, optional): maps the conditioning inputs to one vector [*, C].
            Defaults to their concatenation.
        num_steps (int): K.
        schedule (str): one of :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`.
        prediction (str): one of :data:`PREDICTIONS`.
        sampler (str): one of :data:`SAMPLERS`, used by stochastic sampling.
        sampling_steps (int, optional): reverse steps of a sample, at most K (the default).
        action_bounds (tuple of float): range that clean actions are clipped to.

    Raises:
        ConfigError: on an unknown name or an impossible number of steps.

    Examples:
        >>> module = DiffusionModule(MLPDenoiser(2, 3), action_dim=2)
        >>> observation = torch.randn(8, 3)
        >>> module(observation).shape
        torch.Size([8, 2])
        >>> step = torch.randint(module.num_steps, (8,))
        >>> noisy, noise = module.add_noise(torch.zeros(8, 2), step)
        >>> output = module.denoise(noisy, module.condition(observation), step)
        >>> module.predict_clean(noisy, step, output).shape
        torch.Size([8, 2])
    """

    deterministic_latent: Tensor

    def __init__(
        self,
        score_network: nn.Module,
        action_dim: int,
        *,
        conditioner: nn.Module | None = None,
        num_steps: int = 5,
        schedule: str = "vp",
        prediction: str = "epsilon",
        sampler: str = "ddpm",
        sampling_steps: int | None = None,
        action_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ConfigError(
                f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}"
            )
        self.score_network = score_network
        self.conditioner = conditioner
        self.action_dim = action_dim
        self.num_steps = num_steps
        self.schedule = NoiseSchedule(num_steps, schedule)
        self.prediction = prediction
        self.sampler = sampler
        self.sampling_steps = num_steps if sampling_steps is None else sampling_steps
        self.action_bounds = action_bounds
        self._reverse_step(sampler)
        self._reverse_path(self.sampling_steps)
        latent = torch.randn(action_dim, generator=torch.Generator().manual_seed(0))
        # In the state_dict: a loaded policy repeats the actions of the saved one on any machine.
        latent *= _LATENT_SCALE * action_dim**0.5 / latent.norm()
        self.register_buffer("deterministic_latent", latent)

    def condition(self, *inputs: Tensor) -> Tensor:
        """Make one condition vector [*, C] of the conditioning inputs."""
        if self.conditioner is not None:
            return self.conditioner(*inputs)
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)

    def add_noise(self, action: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        r"""Draw from q(a_k | a): sqrt(alpha_bar_k) a + sqrt(1 - alpha_bar_k) noise.

        Args:
            action (Tensor): clean actions [*, A].
            step (Tensor): int64 steps [*] in [0, K).

        Returns:
            the noisy actions and the noise, both [*, A].
        """
        noise = torch.randn_like(action)
        signal, noise_level = self._levels(step, action.dtype)
        return signal * action + noise_level * noise, noise

    def denoise(self, noisy: Tensor, condition: Tensor, step: Tensor | int) -> Tensor:
        """Run the score network on noisy actions [*, A] at step [*], or at one step for all."""
        if isinstance(step, int):
            column = noisy.new_full((*noisy.shape[:-1], 1), step)
        else:
            column = step.to(noisy.dtype).unsqueeze(-1)
        return self.score_network(torch.cat([noisy, condition, column], dim=-1))

    def target(self, action: Tensor, noise: Tensor) -> Tensor:
        """What the score network is trained to output: the noise, or the clean action."""
        return noise if self.prediction == "epsilon" else action

    def predict_clean(self, noisy: Tensor, step: Tensor | int, output: Tensor) -> Tensor:
        """Turn the score network's output into the clean action, clipped to the action range.

        Args:
            noisy (Tensor): [*, A].
            step (Tensor or int): int64 [*], or one step for all rows.
            output (Tensor): the score network's output [*, A].
        """
        low, high = self.action_bounds
        if self.prediction == "x0":
            return output.clamp(low, high)
        signal, noise_level = self._levels(step, noisy.dtype)
        return ((noisy - noise_level * output) / signal).clamp(low, high)

    def sample(
        self,
        condition: Tensor,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        sampler: str | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Draw one action per row; differentiable through every reverse step.

        Args:
            condition (Tensor): [*, C].

        Keyword Args:
            deterministic (bool): DDIM from the fixed latent; draws no random number.
            generator (torch.Generator, optional): source of the noise. Defaults to the global one.
            sampler (str, optional): one of :data:`SAMPLERS`. Defaults to the module's.
            num_steps (int, optional): reverse steps, at most K. Defaults to ``sampling_steps``.

        Returns:
            actions [*, A] within the action range.
        """
        reverse_step = self._reverse_step("ddim" if deterministic else sampler or self.sampler)
        path = self._reverse_path(self.sampling_steps if num_steps is None else num_steps)
        shape = (*condition.shape[:-1], self.action_dim)
        dtype, device = condition.dtype, condition.device

        def randn() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        latent = self.deterministic_latent.to(condition)
        action = latent.expand(shape) if deterministic else randn()
        alpha_bar = self.schedule.alpha_bar
        for position, step in enumerate(path):
            output = self.denoise(action, condition, step)
            clean = self.predict_clean(action, step, output)
            if position + 1 == len(path):
                break
            then = alpha_bar[path[position + 1]]
            action, std = reverse_step(action, clean, alpha_bar[step], then)
            if std > 0:
                action = action + std * randn()
        return clean

    def forward(self, *inputs: Tensor) -> Tensor:
        """Condition on the inputs and sample, as :func:`~tensordict.nn.interaction_type` says.

        ``RANDOM``, or no interaction type at all, draws from the policy; any other gives the
        deterministic action.
        """
        deterministic = interaction_type() not in (None, InteractionType.RANDOM)
        return self.sample(self.condition(*inputs), deterministic=deterministic)

    def extra_repr(self) -> str:
        """Show what the sub-modules do not."""
        return (
            f"action_dim={self.action_dim}, prediction={self.prediction!r}, "
            f"sampler={self.sampler!r}, sampling_steps={self.sampling_steps}"
        )

    def _levels(self, step: Tensor | int, dtype: torch.dtype) -> tuple[Any, Any]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar): floats for one step, [*, 1] for many."""
        if isinstance(step, int):
            alpha_bar = self.schedule.alpha_bar[step]
            return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        signal = self.schedule.sqrt_alphas_cumprod[step].unsqueeze(-1)
        noise_level = self.schedule.sqrt_one_minus_alphas_cumprod[step].unsqueeze(-1)
        return signal.to(dtype), noise_level.to(dtype)

    @staticmethod
    def _reverse_step(name: str) -> Callable[[Tensor, Tensor, float, float], tuple[Tensor, float]]:
        if name not in SAMPLERS:
            raise ConfigError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
        return SAMPLERS[name]

    def _reverse_path(self, num_steps: int) -> list[int]:
        """The steps a sample visits, noisiest first, evenly spread, always with the noisiest."""
        if not 1 <= num_steps <= self.num_steps:
            raise ConfigError(
                f"{num_steps} reverse steps asked of a diffusion of {self.num_steps}: choose 1 to "
                f"{self.num_steps}"
            )
        last = self.num_steps - 1
        return [round(last * (1 - i / max(num_steps - 1, 1))) for i in range(num_steps)]


class DiffusionActor(SafeModule):
    """A diffusion policy as a TensorDict module: observation and prompt embedding in, action out.

    Args:
        action_dim (int): A.
        condition_dim (int, optional): C, the summed widths of the ``in_keys`` (or the conditioner's
            output width). Needed only for the default network.

    Keyword Args:
        score_network (nn.Module, optional): [*, A + C + 1] to [*, A]. Defaults to an
            :class:`MLPDenoiser`.
        conditioner (nn.Module, optional): maps the tensors of ``in_keys`` to [*, C]. Defaults to
            their concatenation.
        hidden, activation, time_dim: of the default network, see :class:`MLPDenoiser`.
        num_steps, schedule, prediction, sampler, sampling_steps: see :class:`DiffusionModule`.
        in_keys (sequence of NestedKey): defaults to ``["observation", "prompt_embedding"]``.
        out_keys (sequence of NestedKey): defaults to ``["action"]``.
        spec (TensorSpec, optional): the action's spec. A bounded one sets the range that clean
            actions are clipped to; without one it is [-1, 1].
        safe (bool): project actions onto ``spec``.

    Raises:
        ConfigError: if the spec is bounded differently per dimension.
        ValueError: if neither ``condition_dim`` nor ``score_network`` is given.

    Examples:
        >>> from tensordict import TensorDict
        >>> actor = DiffusionActor(action_dim=4, condition_dim=39 + 16)
        >>> data = TensorDict(
        ...     {"observation": torch.randn(2, 39), "prompt_embedding": torch.randn(2, 16)}, [2]
        ... )
        >>> actor(data)["action"].shape
        torch.Size([2, 4])
    """

    module: DiffusionModule

    def __init__(
        self,
        action_dim: int,
        condition_dim: int | None = None,
        *,
        score_network: nn.Module | None = None,
        conditioner: nn.Module | None = None,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        time_dim: int = 16,
        num_steps: int = 5,
        schedule: str = "vp",
        prediction: str = "epsilon",
        sampler: str = "ddpm",
        sampling_steps: int | None = None,
        in_keys: Sequence[NestedKey] = ("observation", "prompt_embedding"),
        out_keys: Sequence[NestedKey] = ("action",),
        spec: TensorSpec | None = None,
        safe: bool = False,
    ) -> None:
        if score_network is None:
            if condition_dim is None:
                raise ValueError("give condition_dim (for the default network) or a score_network")
            score_network = MLPDenoiser(action_dim, condition_dim, hidden, activation, time_dim)
        module = DiffusionModule(
            score_network,
            action_dim,
            conditioner=conditioner,
            num_steps=num_steps,
            schedule=schedule,
            prediction=prediction,
            sampler=sampler,
            sampling_steps=sampling_steps,
            action_bounds=_action_bounds(spec, out_keys[0]),
        )
        super().__init__(module, list(in_keys), list(out_keys), spec=spec, safe=safe)


def _action_bounds(spec: TensorSpec | None, key: NestedKey) -> tuple[float, float]:
    if isinstance(spec, Composite):
        spec = spec[key]
    if not isinstance(spec, Bounded):
        return -1.0, 1.0
    low, high = spec.space.low, spec.space.high
    if (low != low.flatten()[0]).any() or (high != high.flatten()[0]).any():
        raise ConfigError(
            "the action spec has different bounds per dimension, but noise has one scale for all: "
            "rescale actions to [-1, 1] with torchrl's ActionScaling transform"
        )
    return float(low.flatten()[0]), float(high.flatten()[0])
