"""Critics Q(s, a, z), and acting by the best of several sampled actions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.modules import ValueOperator

from llmdpd_torchrl.modules.actors.diffusion import DiffusionActor
from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.modules.diffusion import is_deterministic
from llmdpd_torchrl.utils.errors import ConfigError, DataError

#: How one of the candidates is chosen: there is only one; the most valued; or at random, with odds
#: that grow exponentially with the value.
SELECTIONS = ("none", "argmax", "softmax")


class QValueNetwork(nn.Module):
    """An MLP over the concatenated observation, action and, where there is one, prompt embedding.

    Args:
        in_features (int): summed width of the inputs, the observation's after
            ``observation_module``, or of the action and what the ``conditioner`` makes.
        hidden (sequence of int): widths of the hidden layers.
        activation (str): one of :data:`~llmdpd_torchrl.modules.ACTIVATIONS`.
        observation_module (nn.Module, optional): applied to the observation first, for instance a
            normaliser.
        conditioner (nn.Module, optional): maps all inputs but the action to one vector, like an
            actor's; instead of ``observation_module``.
        layer_norm (bool): normalise before each activation. It bounds what the critic makes of
            actions that the data does not hold, which a bootstrapped target else drives up (Ball et
            al. 2023, section 4.2).

    Examples:
        >>> critic = QValueNetwork(39 + 4 + 16)
        >>> critic(torch.randn(2, 39), torch.randn(2, 4), torch.randn(2, 16)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        observation_module: nn.Module | None = None,
        layer_norm: bool = False,
        conditioner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if conditioner is not None and observation_module is not None:
            raise ConfigError("give a critic a conditioner or an observation_module, not both")
        self.in_features = in_features
        self.observation_module = observation_module
        self.conditioner = conditioner
        self.mlp = make_mlp(in_features, hidden, 1, activation, layer_norm=layer_norm)

    def forward(self, observation: Tensor, action: Tensor, *others: Tensor) -> Tensor:
        """Return the values, [*, 1].

        Raises:
            ConfigError: if the inputs are not ``in_features`` wide together.
        """
        if self.conditioner is not None:
            observation, others = self.conditioner(observation, *others), ()
        elif self.observation_module is not None:
            observation = self.observation_module(observation)
        inputs = (observation, action, *others)
        widths = [value.shape[-1] for value in inputs]
        if sum(widths) != self.in_features:
            raise ConfigError(
                f"the critic was built for inputs of width {self.in_features}, but gets "
                f"{' + '.join(map(str, widths))} = {sum(widths)}: make its dimensions the data's"
            )
        return self.mlp(torch.cat(inputs, dim=-1))


def make_qvalue_networks(
    observation_dim: int,
    action_dim: int,
    prompt_dim: int = 0,
    *,
    num: int = 2,
    hidden: Sequence[int] = (256, 256, 256),
    activation: str = "mish",
    observation_module: nn.Module | None = None,
    layer_norm: bool = False,
    conditioner: nn.Module | None = None,
    condition_keys: Sequence[NestedKey] = (),
) -> list[TensorDictModule]:
    """Build ``num`` independently initialised critics for :class:`LLMDPDLoss`.

    Args:
        observation_dim (int): width of the observation, after ``observation_module``.
        action_dim (int): width of the action.
        prompt_dim (int): width of the prompt embedding; 0 for critics that read no prompt.

    Keyword Args:
        num (int): number of critics.
        hidden, activation, layer_norm: see :class:`QValueNetwork`.
        observation_module (nn.Module, optional): each critic gets its own copy.
        conditioner (nn.Module, optional): each critic gets its own copy, see
            :class:`QValueNetwork`. ``observation_dim`` is then the width of its output.
        condition_keys (sequence of NestedKey): entries that the conditioner reads besides the
            observation.

    Raises:
        ConfigError: if ``num`` is below 1.

    Returns:
        modules from ``observation``, ``action`` (and ``prompt_embedding``) to
        ``state_action_value`` [*, 1].

    Examples:
        >>> [critic.out_keys for critic in make_qvalue_networks(39, 4, 16)]
        [['state_action_value'], ['state_action_value']]
    """
    if num < 1:
        raise ConfigError(f"num is {num}: at least one critic is needed")
    in_keys: list[NestedKey] = ["observation", "action"]
    in_keys += condition_keys
    if prompt_dim:
        in_keys.append("prompt_embedding")
    in_features = observation_dim + action_dim + prompt_dim
    return [
        ValueOperator(
            QValueNetwork(
                in_features,
                hidden,
                activation,
                copy.deepcopy(observation_module),
                layer_norm=layer_norm,
                conditioner=copy.deepcopy(conditioner),
            ),
            in_keys=in_keys,
        )
        for _ in range(num)
    ]


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
            and write ``value_key``. May be empty for ``"none"``.

    Keyword Args:
        selection (str): one of :data:`SELECTIONS`. ``"none"`` acts as ``actor`` does: a single
            sample, and no value.
        num_candidates (int): n, at least 1. Not read by ``"none"``.
        temperature (float): T > 0, in units of Q. Read by ``"softmax"`` alone.
        value_key (NestedKey): where the critics write; the chosen action's :math:`\min_j Q_j`,
            [*, 1], is written there too.

    ``in_keys`` are those of the actor and of the critics, the action left out; ``out_keys`` the
    actor's and ``value_key``; ``spec`` covers both.

    Raises:
        ConfigError: on an unknown selection, no candidate, a temperature that is not above 0, or
            critics that are missing or do not read and write these keys.

    Examples:
        >>> from tensordict import TensorDict
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
        value_key: NestedKey = "state_action_value",
    ) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            raise ConfigError(
                f"unknown selection {selection!r}: choose one of {', '.join(SELECTIONS)}"
            )
        if num_candidates < 1:
            raise ConfigError(f"num_candidates is {num_candidates}: it must be at least 1")
        if not temperature > 0:
            raise ConfigError(
                f"temperature is {temperature}: it must be above 0; for the limit, use "
                'selection="argmax"'
            )
        self.actor = actor
        if selection == "none":
            critics = []
        self.critics = nn.ModuleList(critics)
        self.selection = selection
        self.num_candidates = num_candidates
        self.temperature = temperature
        self.action_key = unravel_key(actor.out_keys[0])
        self.value_key = unravel_key(value_key)
        if selection != "none":
            self._check_critics(critics)
        others = [key for critic in critics for key in map(unravel_key, critic.in_keys)]
        self._critic_keys = [key for key in dict.fromkeys(others) if key != self.action_key]
        self.in_keys = list(dict.fromkeys([*map(unravel_key, actor.in_keys), *self._critic_keys]))
        self.out_keys = [*actor.out_keys, *([self.value_key] if self.critics else [])]
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
        if self.critics:
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
        if self.selection == "none":
            return self.actor(tensordict, generator=generator)
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

    def _check_critics(self, critics: Sequence[TensorDictModule]) -> None:
        if not critics:
            raise ConfigError(
                f'selection={self.selection!r} needs critics: give some, or use selection="none"'
            )
        for number, critic in enumerate(critics):
            if self.action_key not in map(unravel_key, critic.in_keys):
                raise ConfigError(
                    f"critic {number} reads {critic.in_keys}, not the actor's {self.action_key!r}: "
                    "name the action alike in both"
                )
            if self.value_key not in map(unravel_key, critic.out_keys):
                raise ConfigError(
                    f"critic {number} writes {critic.out_keys}, not {self.value_key!r}: set "
                    "value_key"
                )
