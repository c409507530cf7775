"""Noise schedules: how fast K diffusion steps turn an action into Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

    Args:
        tables (mapping of str to Tensor): float64 tensors by the buffers' names.

    Examples:
        >>> tables = ExactTables({"third": torch.tensor([1 / 3], dtype=torch.float64)})
        >>> tables.half().third.dtype, tables.double().third.item() == 1 / 3
        (torch.float32, True)
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
