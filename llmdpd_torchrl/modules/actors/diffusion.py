"""The diffusion policy, and one that acts by the best of several of its samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.modules import SafeModule

from llmdpd_torchrl.modules.denoiser import MLPDenoiser, ResidualDenoiser
from llmdpd_torchrl.modules.diffusion import DiffusionModule, is_deterministic
from llmdpd_torchrl.utils.errors import ConfigError, DataError

#: How one of the candidates is chosen: the most valued, or at random, with odds that grow
#: exponentially with the value.
SELECTIONS = ("argmax", "softmax")


class DiffusionActor(SafeModule):
    """A diffusion policy as a TensorDict module: observation and prompt embedding in, action out.

    Args:
        action_dim (int): A.
        condition_dim (int, optional): C, the summed widths of the ``in_keys`` (or the conditioner's
            output width). Needed only for the default network.

    Keyword Args:
        score_network (nn.Module, optional): ``[*, A + C + 1]`` to ``[*, A]``. Defaults to an
            :class:`MLPDenoiser`.
        conditioner (nn.Module, optional): maps the tensors of ``in_keys`` to ``[*, C]``.
            Defaults to their concatenation.
        hidden, activation: sizes of the default network, see :class:`MLPDenoiser`.
        base (slice, optional): columns of the condition that hold an action; the network then
            learns the residual to it, see :class:`ResidualDenoiser`.
        num_steps, schedule, prediction, sampler, sampling_steps: see :class:`DiffusionModule`.
        in_keys (sequence of NestedKey): defaults to ``["observation", "prompt_embedding"]``.
        out_keys (sequence of NestedKey): defaults to ``["action"]``.
        spec (TensorSpec, optional): the action's spec. A bounded one sets the range that clean
            actions are clipped to; without one it is [-1, 1].

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
        base: slice | None = None,
        num_steps: int = 5,
        schedule: str | Sequence[float] = "vp",
        prediction: str = "epsilon",
        sampler: str = "ddpm",
        sampling_steps: int | None = None,
        in_keys: Sequence[NestedKey] = ("observation", "prompt_embedding"),
        out_keys: Sequence[NestedKey] = ("action",),
        spec: TensorSpec | None = None,
    ) -> None:
        if score_network is None:
            if condition_dim is None:
                raise ValueError("give condition_dim (for the default network) or a score_network")
            score_network = MLPDenoiser(action_dim, condition_dim, hidden, activation)
        if base is not None:
            if not isinstance(score_network, MLPDenoiser):
                raise ConfigError(
                    f"a base action needs an MLPDenoiser, got {type(score_network).__name__}: "
                    "leave base out, or wrap the network yourself"
                )
            if prediction != "x0":
                raise ConfigError(
                    f"prediction is {prediction!r}: with a base action the network predicts clean "
                    "actions, use x0"
                )
            score_network = ResidualDenoiser(score_network, base, num_steps, schedule)
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
        super().__init__(module, list(in_keys), list(out_keys), spec=spec)

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


class QSelectedActor(TensorDictModuleBase):
    r"""A diffusion policy that acts by the best, or softly the best, of its own candidates.

    For each row, n actions :math:`a_1..a_n` are sampled from the policy, and :math:`a_i` is taken
    with probability proportional to :math:`\exp(\min_j Q_j(s, a_i) / T)` (``"softmax"``, as in
    Diffusion-QL), or where the value is greatest (``"argmax"``). The condition is computed once per
    row, not once per candidate.

    Under a deterministic exploration type nothing is random: the candidates are the actor's
    deterministic action and those that its deterministic reverse process makes of n - 1 fixed
    latents, the same for all rows, and the best is taken. So an action depends on its own inputs
    alone, repeats exactly, and is never valued less than the actor's own deterministic one.

    Args:
        actor (DiffusionActor): the policy.
        critics (sequence of TensorDictModule): read the actor's ``out_keys[0]`` and anything else,
            and write the value, [*, 1], to one key, where the chosen action's
            :math:`\min_j Q_j` is written too.

    Keyword Args:
        selection (str): one of :data:`SELECTIONS`.
        num_candidates (int): n, at least 1.
        temperature (float): T > 0, in units of Q. Read by ``"softmax"`` alone.

    ``in_keys`` are those of the actor and of the critics, the action left out; ``out_keys`` the
    actor's and the critics'; ``spec`` covers both.

    Raises:
        ConfigError: on an unknown selection, no candidate, a temperature that is not above 0, or
            critics that are missing or do not read the action.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import make_qvalue_networks
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3, in_keys=["observation"])
        >>> policy = QSelectedActor(actor, make_qvalue_networks(3, 2), num_candidates=10)
        >>> data = policy(TensorDict({"observation": torch.randn(5, 3)}, [5]))
        >>> data["action"].shape, data["state_action_value"].shape
        (torch.Size([5, 2]), torch.Size([5, 1]))
    """

    latents: Tensor

    def __init__(
        self,
        actor: DiffusionActor,
        critics: Sequence[TensorDictModule],
        *,
        selection: str = "softmax",
        num_candidates: int = 50,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            raise ConfigError(
                f"unknown selection {selection!r}: choose one of {', '.join(SELECTIONS)}"
            )
        if not critics:
            raise ConfigError("critics is empty: give at least one, to choose by")
        if num_candidates < 1:
            raise ConfigError(f"num_candidates is {num_candidates}: it must be at least 1")
        if not temperature > 0:
            raise ConfigError(
                f"temperature is {temperature}: it must be above 0; for the limit, use "
                'selection="argmax"'
            )
        self.actor = actor
        self.critics = nn.ModuleList(critics)
        self.selection = selection
        self.num_candidates = num_candidates
        self.temperature = temperature
        self.action_key = unravel_key(actor.out_keys[0])
        self.value_key = unravel_key(critics[0].out_keys[0])
        for number, critic in enumerate(critics):
            if self.action_key not in map(unravel_key, critic.in_keys):
                raise ConfigError(
                    f"critic {number} reads {critic.in_keys}, not the actor's {self.action_key!r}: "
                    "name the action alike in both"
                )
        others = [key for critic in critics for key in map(unravel_key, critic.in_keys)]
        self._critic_keys = [key for key in dict.fromkeys(others) if key != self.action_key]
        self.in_keys = list(dict.fromkeys([*map(unravel_key, actor.in_keys), *self._critic_keys]))
        self.out_keys = [*actor.out_keys, self.value_key]
        latents = torch.randn(
            num_candidates - 1,
            actor.module.action_dim,
            generator=torch.Generator().manual_seed(1),
            dtype=torch.float32,
        )
        # Their number is a setting of the evaluation, so they are not saved.
        self.register_buffer("latents", latents, persistent=False)

    @property
    def spec(self) -> Composite:
        """The specs of what is written."""
        spec = self.actor.spec.clone()
        spec[self.value_key] = Unbounded((*spec.shape, 1))
        return spec

    @dispatch(auto_batch_size=False)
    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write an action, and its value.

        Args:
            tensordict (TensorDictBase): holds ``in_keys``; any batch shape.

        Keyword Args:
            generator (torch.Generator, optional): source of all randomness. Defaults to the global
                one.

        Raises:
            DataError: if one of ``in_keys`` is missing.
        """
        missing = [key for key in self.in_keys if tensordict.get(key) is None]
        if missing:
            raise DataError(f"the policy reads {missing[0]!r}, which the data lacks: add it")
        candidates = self._candidates(tensordict, generator)
        values = self._values(tensordict, candidates)
        index = self._choose(values, generator).unsqueeze(0)
        action = candidates.gather(0, index.expand(1, *candidates.shape[1:])).squeeze(0)
        tensordict.set(self.action_key, action)
        return tensordict.set(self.value_key, values.gather(0, index).squeeze(0))

    def extra_repr(self) -> str:
        """Show what the sub-modules do not."""
        return (
            f"selection={self.selection!r}, num_candidates={self.num_candidates}, "
            f"temperature={self.temperature}"
        )

    def _candidates(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """Actions [n, *, A]."""
        module = self.actor.module
        condition = module.condition(*(tensordict.get(key) for key in self.actor.in_keys))
        deterministic = is_deterministic()
        latent = None
        if deterministic:
            first = module.deterministic_latent.to(self.latents)
            latent = torch.cat([first.unsqueeze(0), self.latents])
            ones = [1] * (condition.ndim - 1)
            latent = latent.reshape(self.num_candidates, *ones, module.action_dim)
        return module.sample(
            condition,
            sample_shape=(self.num_candidates,),
            deterministic=deterministic,
            latent=latent,
            generator=generator,
        )

    def _values(self, tensordict: TensorDictBase, candidates: Tensor) -> Tensor:
        """The least of the critics' values, [n, *, 1]."""
        data = tensordict.select(*self._critic_keys)
        data = data.expand(self.num_candidates, *tensordict.batch_size)
        values = [
            critic(data.copy().set(self.action_key, candidates)).get(self.value_key)
            for critic in self.critics
        ]
        return torch.stack(values).amin(0)

    def _choose(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        """Which candidate each row takes, [*, 1]."""
        if self.selection == "argmax" or is_deterministic():
            return values.argmax(0)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        odds = torch.softmax(values / self.temperature, dim=0).movedim(0, -1)
        index = torch.multinomial(odds.reshape(-1, self.num_candidates), 1, generator=generator)
        return index.reshape(values.shape[1:])
