"""The diffusion over one action: adding noise, and sampling by removing it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn

from llmdpd_torchrl.modules.samplers import NoiseSchedule, reverse_process
from llmdpd_torchrl.utils.errors import ConfigError, DataError

#: Length of the deterministic latent, in units of a typical sample's.
_LATENT_SCALE = 0.1
#: What the score network's output means: the noise, the clean action, or the velocity
#: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) action (Salimans & Ho 2022).
PREDICTIONS = ("epsilon", "x0", "v")


def is_deterministic() -> bool:
    """Whether an interaction type other than ``RANDOM`` is set, by whatever name.

    A diffusion has neither mean, mode nor median in closed form; all of them ask for the one
    deterministic action.
    """
    return interaction_type() not in (None, InteractionType.RANDOM)


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
            float in [0, K). If it has a ``precondition`` method like :class:`MLPDenoiser`'s,
            sampling uses that.
        action_dim (int): A.

    Keyword Args:
        conditioner (nn.Module, optional): maps the conditioning inputs to one vector [*, C].
            Defaults to their concatenation.
        num_steps (int): K.
        schedule (str or sequence of float): one of
            :data:`~llmdpd_torchrl.modules.NOISE_SCHEDULES`, or the K betas.
        prediction (str): one of :data:`PREDICTIONS`.
        sampler (str): one of :data:`~llmdpd_torchrl.modules.SAMPLERS`, used by stochastic sampling.
        sampling_steps (int, optional): reverse steps of a sample, at most K (the default).
        action_bounds (tuple of float): range that clean actions are clipped to.

    Raises:
        ConfigError: on an unknown name, an impossible number of steps or an empty action range.

    Examples:
        >>> from llmdpd_torchrl.modules import MLPDenoiser
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
        schedule: str | Sequence[float] = "vp",
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
        low, high = action_bounds
        if not -math.inf < low < high < math.inf:
            raise ConfigError(
                f"the action range [{low}, {high}] is empty or infinite, but clean actions are "
                "clipped to it: give finite bounds"
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
        # Raises here, not at the first sample, on an impossible number of steps.
        reverse_process(sampler, self.schedule.alpha_bar, self.sampling_steps)
        latent = torch.randn(
            action_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        # In the state_dict: a loaded policy repeats the actions of the saved one on any machine.
        latent *= _LATENT_SCALE * action_dim**0.5 / latent.norm()
        self.register_buffer("deterministic_latent", latent)

    def condition(self, *inputs: Tensor) -> Tensor:
        """Make one condition vector [*, C] of the conditioning inputs.

        Raises:
            DataError: if the inputs to be concatenated differ in their batch shape.
        """
        if self.conditioner is not None:
            return self.conditioner(*inputs)
        if any(value.shape[:-1] != inputs[0].shape[:-1] for value in inputs):
            raise DataError(
                f"conditioning inputs of shapes {', '.join(str(list(v.shape)) for v in inputs)}: "
                "all but the last dimension must be equal, expand the smaller ones"
            )
        condition = torch.cat(inputs, dim=-1)
        is_float = condition.is_floating_point()
        return condition if is_float else condition.to(self.deterministic_latent.dtype)

    def add_noise(self, action: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        r"""Sample from q(a_k | a): sqrt(alpha_bar_k) a + sqrt(1 - alpha_bar_k) noise.

        Args:
            action (Tensor): clean actions [*, A].
            step (Tensor): int64 steps [*] in [0, K).

        Returns:
            the noisy actions and the noise, both [*, A].

        Raises:
            DataError: if the shapes are not these.
        """
        if action.shape[-1] != self.action_dim or step.shape != action.shape[:-1]:
            raise DataError(
                f"actions of shape {list(action.shape)} and steps of shape {list(step.shape)}: "
                f"actions must be [*, {self.action_dim}] and steps [*]"
            )
        noise = torch.randn_like(action)
        signal, noise_level = self._levels(step)
        return (signal * action + noise_level * noise).to(action.dtype), noise

    def denoise(self, noisy: Tensor, condition: Tensor, step: Tensor | int) -> Tensor:
        """Run the score network on noisy actions [*, A] at step [*], or at one step for all.

        The network reads the step beside the actions and so in their dtype: in bfloat16, steps
        above 256 are rounded.

        Raises:
            ConfigError: if its output is not [*, A].
        """
        if isinstance(step, int):
            column = noisy.new_full((*noisy.shape[:-1], 1), step)
        else:
            column = step.to(noisy.dtype).unsqueeze(-1)
        output = self.score_network(torch.cat([noisy, condition, column], dim=-1))
        return self._check_output(output, noisy)

    def target(self, action: Tensor, noise: Tensor, step: Tensor | int) -> Tensor:
        """What the score network is trained to output, [*, A]: see :data:`PREDICTIONS`.

        Args:
            action (Tensor): clean actions [*, A].
            noise (Tensor): what :meth:`add_noise` added to them, [*, A].
            step (Tensor or int): int64 [*], or one step for all rows.
        """
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return action
        signal, noise_level = self._levels(step)
        return (signal * noise - noise_level * action).to(action.dtype)

    def predict_clean(self, noisy: Tensor, step: Tensor | int, output: Tensor) -> Tensor:
        """Turn the score network's output into the clean action, clipped to the action range.

        Args:
            noisy (Tensor): [*, A].
            step (Tensor or int): int64 [*], or one step for all rows.
            output (Tensor): the score network's output [*, A].
        """
        low, high = self.action_bounds
        if self.prediction == "x0":
            return output.to(noisy.dtype).clamp(low, high)
        signal, noise_level = self._levels(step)
        if self.prediction == "v":
            clean = signal * noisy - noise_level * output
        else:
            clean = (noisy - noise_level * output) / signal
        return clean.to(noisy.dtype).clamp(low, high)

    def sample(
        self,
        condition: Tensor,
        *,
        sample_shape: Sequence[int] = (),
        deterministic: bool = False,
        latent: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Sample actions; differentiable through every reverse step.

        Args:
            condition (Tensor): [*, C].

        Keyword Args:
            sample_shape (sequence of int): samples per row, in front of the row's own dimensions as
                in :mod:`torch.distributions`. Defaults to a single sample.
            deterministic (bool): DDIM from the fixed latent; nothing is random.
            latent (Tensor, optional): where the reverse process starts, of a shape that expands to
                [*sample_shape, *, A]. Defaults to noise, or to the fixed latent.
            generator (torch.Generator, optional): source of the noise. Defaults to the global one.
            num_steps (int, optional): reverse steps, at most K. Defaults to ``sampling_steps``.

        Returns:
            actions [*sample_shape, *, A] within the action range.

        Raises:
            ConfigError: on an impossible number of steps, or a condition of another width than the
                score network's.
        """
        path, steps = reverse_process(
            "ddim" if deterministic else self.sampler,
            self.schedule.alpha_bar,
            self.sampling_steps if num_steps is None else num_steps,
        )
        rows = (*sample_shape, *condition.shape[:-1])
        if latent is None and not deterministic:
            action = torch.randn(
                (*rows, self.action_dim),
                generator=generator,
                dtype=condition.dtype,
                device=condition.device,
            )
        else:
            latent = self.deterministic_latent if latent is None else latent
            action = latent.to(condition).expand(*rows, self.action_dim)
        outputs = self._denoiser(condition, rows, path)
        previous = None
        for position, reverse_step in enumerate(steps):
            clean = self.predict_clean(action, path[position], outputs(action, position))
            action = reverse_step(action, clean, previous, generator)
            previous = clean
        return self.predict_clean(action, path[-1], outputs(action, len(steps)))

    def forward(self, *inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Condition on the inputs and sample, as :func:`~tensordict.nn.interaction_type` says.

        ``RANDOM``, or no interaction type at all, samples from the policy; any other gives the
        deterministic action.
        """
        return self.sample(
            self.condition(*inputs), deterministic=is_deterministic(), generator=generator
        )

    def extra_repr(self) -> str:
        """Show what the sub-modules do not."""
        return (
            f"action_dim={self.action_dim}, prediction={self.prediction!r}, "
            f"sampler={self.sampler!r}, sampling_steps={self.sampling_steps}"
        )

    def _levels(self, step: Tensor | int) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar): floats for one step, [*, 1] for many."""
        if isinstance(step, int):
            alpha_bar = self.schedule.alpha_bar[step]
            return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        signal = self.schedule.sqrt_alphas_cumprod[step].unsqueeze(-1)
        return signal, self.schedule.sqrt_one_minus_alphas_cumprod[step].unsqueeze(-1)

    def _denoiser(
        self, condition: Tensor, rows: Sequence[int], path: Sequence[int]
    ) -> Callable[[Tensor, int], Tensor]:
        """The score network under one condition: from noisy actions and a place in the path."""
        precondition = getattr(self.score_network, "precondition", None)
        if precondition is None:
            condition = condition.expand(*rows, condition.shape[-1])
            return lambda noisy, position: self.denoise(noisy, condition, path[position])
        layers = precondition(condition, path)
        return lambda noisy, position: self._check_output(
            self.score_network(noisy, layers[position]), noisy
        )

    @staticmethod
    def _check_output(output: Tensor, noisy: Tensor) -> Tensor:
        if output.shape != noisy.shape:
            raise ConfigError(
                f"the score network made {list(output.shape)} of noisy actions "
                f"{list(noisy.shape)}: it must output one value per entry of the action"
            )
        return output
