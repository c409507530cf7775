"""The diffusion policy: a TensorDict module from observation and prompt embedding to action."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.modules import SafeModule

from llmdpd_torchrl.modules.denoiser import MLPDenoiser, ResidualDenoiser
from llmdpd_torchrl.modules.diffusion import DiffusionModule
from llmdpd_torchrl.utils.errors import ConfigError


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
        hidden, activation, time_dim: sizes of the default network, see :class:`MLPDenoiser`.
        base (slice, optional): columns of the condition that hold an action; the network then
            learns the residual to it, see :class:`ResidualDenoiser`.
        movement, min_base_fraction: how far that action may be cancelled, see there.
        num_steps, schedule, prediction, sampler, sampling_steps: see :class:`DiffusionModule`.
        in_keys (sequence of NestedKey): defaults to ``["observation", "prompt_embedding"]``.
        out_keys (sequence of NestedKey): defaults to ``["action"]``.
        spec (TensorSpec, optional): the action's spec. A bounded one sets the range that clean
            actions are clipped to; without one it is [-1, 1].
        safe (bool): project actions onto ``spec``.

    Raises:
        ConfigError: if the spec is not bounded, of another width, or bounded differently per
            dimension; and as :class:`DiffusionModule` does.
        ValueError: if neither ``condition_dim`` nor ``score_network`` is given.

    Examples:
        >>> import torch
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
        base: slice | None = None,
        movement: int = 0,
        min_base_fraction: float = 0.75,
        num_steps: int = 5,
        schedule: str | Sequence[float] = "vp",
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
        if base is not None:
            if not isinstance(score_network, MLPDenoiser):
                raise ConfigError(
                    f"a base action needs an MLPDenoiser, got {type(score_network).__name__}: "
                    "leave base out, or wrap the network yourself"
                )
            score_network = ResidualDenoiser(
                score_network,
                base,
                num_steps,
                schedule,
                prediction,
                movement=movement,
                min_base_fraction=min_base_fraction,
            )
        module = DiffusionModule(
            score_network,
            action_dim,
            conditioner=conditioner,
            num_steps=num_steps,
            schedule=schedule,
            prediction=prediction,
            sampler=sampler,
            sampling_steps=sampling_steps,
            action_bounds=_action_bounds(spec, out_keys[0], action_dim),
        )
        super().__init__(module, list(in_keys), list(out_keys), spec=spec, safe=safe)

    @classmethod
    def from_torchrl(cls, actor: TorchRLDiffusionActor, *, sampler: str = "ddpm") -> DiffusionActor:
        """Adapt TorchRL's diffusion actor, for losses that need more than its module offers.

        The two share the score network, so that training one trains the other. Keys, noise
        schedule and spec are taken over. Unlike TorchRL's, clean actions are clipped to the range
        of the spec, or to [-1, 1] without one.

        Args:
            actor (torchrl.modules.DiffusionActor): predicts noise, as TorchRL's losses train it.

        Keyword Args:
            sampler (str): see :class:`DiffusionModule`.

        Raises:
            ConfigError: if the actor's spec is not bounded alike in all dimensions.

        Examples:
            >>> from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
            >>> theirs = TorchRLDiffusionActor(action_dim=2, obs_dim=3, num_steps=10)
            >>> ours = DiffusionActor.from_torchrl(theirs)
            >>> ours.module.score_network is theirs.module.score_network
            True
        """
        module = actor.module
        return cls(
            module.action_dim,
            score_network=module.score_network,
            num_steps=module.num_steps,
            schedule=module.betas.double().tolist(),
            sampler=sampler,
            in_keys=actor.in_keys,
            out_keys=actor.out_keys,
            spec=actor.spec,
        )


def _action_bounds(spec: TensorSpec | None, key: NestedKey, action_dim: int) -> tuple[float, float]:
    if isinstance(spec, Composite):
        if key not in spec.keys(True, True):
            raise ConfigError(f"the spec has no entry {key!r}, the actor's first out_key: add it")
        spec = spec[key]
    if spec is None:
        return -1.0, 1.0
    if not isinstance(spec, Bounded):
        raise ConfigError(
            f"the action spec is {type(spec).__name__}, but clean actions are clipped to its "
            "bounds: give a Bounded spec, or none for [-1, 1]"
        )
    if spec.shape[-1:] != (action_dim,):
        raise ConfigError(
            f"the action spec has shape {list(spec.shape)}, but action_dim is {action_dim}: make "
            "them agree"
        )
    low, high = spec.space.low, spec.space.high
    if (low != low.flatten()[0]).any() or (high != high.flatten()[0]).any():
        raise ConfigError(
            "the action spec has different bounds per dimension, but noise has one scale for all: "
            "rescale actions to [-1, 1] with torchrl's ActionScaling transform"
        )
    return float(low.flatten()[0]), float(high.flatten()[0])
