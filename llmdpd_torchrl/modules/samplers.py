"""Noise schedules, and the reverse steps from one noise level to the next, cleaner one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmdpd_torchrl.utils.errors import ConfigError


def _vp(num_steps: int) -> Tensor:
    """Discretised variance-preserving SDE with beta(t) from 0.1 to 10 (Diffusion-QL, appendix)."""
    beta_min, beta_max = 0.1, 10.0
    k = torch.arange(1, num_steps + 1, dtype=torch.float64)
    slope = 0.5 * (beta_max - beta_min) * (2 * k - 1) / num_steps**2
    return 1.0 - torch.exp(-beta_min / num_steps - slope)


def _linear(num_steps: int) -> Tensor:
    """Equally spaced betas, 1e-4 to 0.02 (Ho et al. 2020; TorchRL's ``DiffusionActor``).

    Made for hundreds of steps: with K = 100 more than half of the action is still there at the
    end, and with K = 5 almost all of it, while sampling starts from pure noise.
    """
    return torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)


#: Names that configurations may use, and the function from K to the K betas (float64).
NOISE_SCHEDULES: Mapping[str, Callable[[int], Tensor]] = {
    "vp": _vp,
    "linear": _linear,
}


class ExactTables(nn.Module):
    """Constants as buffers that no cast of the module rounds.

    They are given in float64 and held in float32, or in float64 after ``.double()``; a cast to a
    half precision leaves them float32. Being constants, they are not part of the ``state_dict``.
    """

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Python floats: out of reach of every cast and move.
        self._exact = {name: table.tolist() for name, table in tables.items()}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactTables:
        super()._apply(fn, recurse=recurse)
        # A cast rounds what it is given; start again from the exact values.
        for name, exact in self._exact.items():
            cast = getattr(self, name)
            dtype = torch.promote_types(cast.dtype, torch.float32)
            if cast.device.type != "meta":
                setattr(self, name, torch.tensor(exact, dtype=dtype, device=cast.device))
        return self


class NoiseSchedule(ExactTables):
    r"""The constants of a K-step diffusion, indexed by step k = 0 (cleanest) ... K - 1 (noisiest).

    The default ``"vp"`` is

    .. math:: \beta_k = 1 - \exp\left(-\tfrac{\beta_{min}}{K}
              - \tfrac12 (\beta_{max} - \beta_{min}) \tfrac{2k - 1}{K^2}\right),
              \quad k = 1..K, \; \beta_{min} = 0.1, \; \beta_{max} = 10.

    The buffers stay float32 when the module is cast to a half precision, where 1 - alpha_bar would
    lose the first steps; see :class:`ExactTables`.

    Args:
        num_steps (int): K, at least 1.
        schedule (str or sequence of float): one of :data:`NOISE_SCHEDULES`, or the K betas.

    Attributes:
        betas, alphas_cumprod, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod: buffers [K].
        alpha_bar: ``alphas_cumprod`` as Python floats, exact on any device and under any cast.

    Raises:
        ConfigError: on an unknown name, a K below 1 or another number of betas.

    Examples:
        >>> schedule = NoiseSchedule(5)
        >>> [round(beta, 3) for beta in schedule.betas.tolist()]
        [0.196, 0.459, 0.636, 0.755, 0.835]
        >>> schedule.half().betas.dtype
        torch.float32
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, num_steps: int, schedule: str | Sequence[float] = "vp") -> None:
        if isinstance(schedule, str) and schedule not in NOISE_SCHEDULES:
            raise ConfigError(
                f"unknown noise schedule {schedule!r}: choose one of {', '.join(NOISE_SCHEDULES)}"
            )
        if num_steps < 1 or num_steps != int(num_steps):
            raise ConfigError(
                f"a diffusion needs an integer number of steps, at least one: got "
                f"num_steps={num_steps}"
            )
        if isinstance(schedule, str):
            betas = NOISE_SCHEDULES[schedule](num_steps)
        elif len(schedule) == num_steps:
            betas = torch.tensor(schedule, dtype=torch.float64)
        else:
            raise ConfigError(f"the noise schedule has {len(schedule)} betas: give {num_steps}")
        alphas_cumprod = (1.0 - betas).cumprod(0)
        super().__init__(
            {
                "betas": betas,
                "alphas_cumprod": alphas_cumprod,
                "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
                "sqrt_one_minus_alphas_cumprod": (1.0 - alphas_cumprod).sqrt(),
            }
        )
        self.num_steps = num_steps
        self.schedule = schedule
        self.alpha_bar: tuple[float, ...] = tuple(alphas_cumprod.tolist())

    def extra_repr(self) -> str:
        """Show K and the name."""
        return f"num_steps={self.num_steps}, schedule={self.schedule!r}"


class ReverseStep(NamedTuple):
    """One reverse step as a linear combination: all that distinguishes the samplers.

    Of the noisy action x_now, the denoiser's clean action x0, that of the step before, and fresh
    Gaussian noise it makes

    x_then = ``noisy`` * x_now + ``clean`` * x0 + ``previous`` * x0_before + ``std`` * noise.

    The coefficients are Python floats: they cost no tensor and no device round trip, no cast rounds
    them, and nothing is remembered between calls.
    """

    noisy: float
    clean: float
    previous: float = 0.0
    std: float = 0.0

    def __call__(
        self,
        noisy: Tensor,
        clean: Tensor,
        previous: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x_then [*, A] of x_now and x0 and, where they are read, x0 one step before and noise."""
        moved = torch.add(self.noisy * noisy, clean, alpha=self.clean)
        if self.previous != 0.0:
            assert previous is not None  # a first step does not read it
            moved = torch.add(moved, previous, alpha=self.previous)
        if self.std > 0.0:
            noise = torch.randn(
                moved.shape, generator=generator, dtype=moved.dtype, device=moved.device
            )
            moved = torch.add(moved, noise, alpha=self.std)
        return moved


class Sampler(NamedTuple):
    """A way to run the reverse process.

    Attributes:
        path: from alpha_bar of all K diffusion steps, cleanest first, and a number N to the N steps
            to visit, noisiest first.
        step: from alpha_bar one visited step before (``None`` at the first), now and then to the
            reverse step from now to then.
    """

    path: Callable[[Sequence[float], int], list[int]]
    step: Callable[[float | None, float, float], ReverseStep]


def _even_path(alpha_bar: Sequence[float], num_steps: int) -> list[int]:
    last = len(alpha_bar) - 1
    return [round(last * (1 - i / max(num_steps - 1, 1))) for i in range(num_steps)]


def _log_snr_path(alpha_bar: Sequence[float], num_steps: int) -> list[int]:
    """Even in log-SNR, as nearly as K discrete steps allow.

    An extrapolation holds as far as it looks back. On an even path the log-SNR leaps at the clean
    end, and second order comes out worse than first.
    """
    log_snr = [_half_log_snr(level) for level in alpha_bar]
    stride = (log_snr[0] - log_snr[-1]) / max(num_steps - 1, 1)
    path: list[int] = []
    step = len(alpha_bar)
    for i in range(num_steps):
        target = log_snr[-1] + i * stride
        step -= 1
        # Down to the step nearest to the target, but leave one for each that is still to come.
        while step > num_steps - 1 - i and log_snr[step] + log_snr[step - 1] < 2 * target:
            step -= 1
        path.append(step)
    return path


def _ddpm(before: float | None, now: float, then: float) -> ReverseStep:
    """Posterior q(x_then | x_now, x_0) of Ho et al. (2020), equation 7, for any stride."""
    alpha = now / then
    return ReverseStep(
        noisy=math.sqrt(alpha) * (1 - then) / (1 - now),
        clean=math.sqrt(then) * (1 - alpha) / (1 - now),
        std=math.sqrt((1 - alpha) * (1 - then) / (1 - now)),
    )


def _ddim(before: float | None, now: float, then: float) -> ReverseStep:
    """Song et al. (2021), equation 12 with eta = 0; the noise is read off the clipped x0."""
    ratio = math.sqrt((1 - then) / (1 - now))
    return ReverseStep(noisy=ratio, clean=math.sqrt(then) - ratio * math.sqrt(now))


def _dpmpp_2m(before: float | None, now: float, then: float) -> ReverseStep:
    """DPM-Solver++(2M), Lu et al. (2022), algorithm 2: x0 extrapolated linearly in the log-SNR.

    Its first-order step is DDIM's, taken where there is no step before.
    """
    first_order = _ddim(before, now, then)
    if before is None:
        return first_order
    stride_before = _half_log_snr(now) - _half_log_snr(before)
    stride = _half_log_snr(then) - _half_log_snr(now)
    extrapolation = stride / (2 * stride_before)
    return ReverseStep(
        noisy=first_order.noisy,
        clean=first_order.clean * (1 + extrapolation),
        previous=-first_order.clean * extrapolation,
    )


def _half_log_snr(alpha_bar: float) -> float:
    """lambda = log(signal / noise) of the papers."""
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


#: Names that configurations may use. Each visits the steps that its authors do: evenly spread, or
#: even in log-SNR.
SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": Sampler(_even_path, _ddpm),
    "ddim": Sampler(_even_path, _ddim),
    "dpmpp_2m": Sampler(_log_snr_path, _dpmpp_2m),
}


def reverse_process(
    sampler: str, alpha_bar: Sequence[float], num_steps: int
) -> tuple[list[int], list[ReverseStep]]:
    """The diffusion steps that a sample visits, and the reverse steps between them.

    Args:
        sampler (str): one of :data:`SAMPLERS`.
        alpha_bar (sequence of float): of all K diffusion steps, cleanest first.
        num_steps (int): N, how many to visit, 1 to K.

    Returns:
        N diffusion steps, from the noisiest to the cleanest, and N - 1 reverse steps. Where the
        path ends the sample is the clean action itself: to go from there to no noise at all is what
        DDPM and DDIM do, and DPM-Solver++ if its last step is of first order, as its authors advise
        for few steps.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    if not 1 <= num_steps <= len(alpha_bar):
        raise ConfigError(
            f"{num_steps} reverse steps asked of a diffusion of {len(alpha_bar)}: choose 1 to "
            f"{len(alpha_bar)}"
        )
    path = SAMPLERS[sampler].path(alpha_bar, num_steps)
    levels = [alpha_bar[step] for step in path]
    make = SAMPLERS[sampler].step
    return path, [
        make(levels[i - 1] if i else None, levels[i], levels[i + 1]) for i in range(num_steps - 1)
    ]
