"""The objective of LLM-driven policy diffusion and, without a prompt, of Diffusion-QL."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs.utils import ExplorationType, step_mdp
from torchrl.objectives import ValueEstimators
from torchrl.objectives.utils import _vmap_func, dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from llmdpd_torchrl.objectives.cloning import DiffusionCloning
from llmdpd_torchrl.objectives.critic_loss import CriticLoss
from llmdpd_torchrl.objectives.guidance import GUIDANCE, Denoised, Guidance
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import NonNegative, Size

GUIDANCE_MODES = tuple(GUIDANCE)


class LLMDPDLoss(DiffusionCloning):
    r"""Prompt-conditioned diffusion behaviour cloning with Q guidance, and the critics' TD loss.

    From `"LLM-Driven Policy Diffusion" <https://arxiv.org/abs/2509.00347>`_. With z the embedding
    of the task's prompt, and i and j two critics sampled per call,

    .. math::
        L_d &= E_{k, \epsilon, (s, a)} \|\epsilon - \epsilon_\theta(a_k, k, s, z)\|^2 \\
        L_r &= E_{s, a^0 \sim \pi_\theta(\cdot|s, z)} Q_i(s, a^0, z)
               \;/\; \mathrm{stopgrad}\, E|Q_j(s, a^0, z)| \\
        L_{actor} &= L_d - \lambda L_r \\
        L_{qvalue} &= \sum_j E\,(Q_j(s, a, z) - y)^2, \quad
        y = r + \gamma (1 - terminated) \min_j Q'_j(s', a', z), \; a' \sim \pi'_{\theta'}(s', z).

    The squared norm is averaged over the action's dimensions; s' has the prompt of s. L_d imitates
    another action than the executed one after ``set_keys(expert_action=...)``. The prompt
    network learns from L_d, L_qvalue and, under one-step guidance, L_r through the actor, but never
    through L_r's critics: it could otherwise raise Q while the policy stays the same.

    Args:
        prompt_network (TensorDictModule or None): makes z. ``None``: no prompt, or z in the data.
        actor_network (TensorDictModule): a :class:`~llmdpd_torchrl.modules.DiffusionActor`.
        qvalue_network (list of TensorDictModule): two critics or more.

    Keyword Args:
        lmbda (float or Tensor): λ ≥ 0, a buffer; assign to ``loss.lmbda`` to schedule it (in-place
            writes go unnoticed). While 0: behaviour cloning bit for bit, without L_r. Default: 1.
        guidance (str or Guidance): ``"chain"`` (default) samples a^0 and differentiates through all
            reverse steps (Diffusion-QL); ``"one_step"`` predicts it in L_d's forward pass (EDP);
            others, with networks of their own, are objects.
        target_sampling_steps (int, optional): reverse steps of a'. Default: the actor's.
        critic_loss (CriticLoss, optional): of L_qvalue's rows. Default: squared errors.
        reduction (str): ``"none"`` | ``"mean"`` (default) | ``"sum"``.
        deactivate_vmap (bool): evaluate the critics in a loop. Default: ``False``.

    The output also holds detached scalars: ``bc`` (L_d), ``guidance`` (L_r, 0 while λ is 0),
    ``lmbda``, ``q_value`` and ``target_value`` (batch means). Priorities are written to
    ``td_error``; ``priority_weight``, where given, weighs the rows. Entries are cast to the
    networks' precision, flags to bool. Values are not checked, which would wait for the device: the
    data are checked on loading (a buffer of your own may be by
    :class:`~torchrl.envs.transforms.FiniteTensorDictCheck`), and losses by the trainer.

    Raises:
        ConfigError: on a setting out of range, anything but a list of critics, or categorical ones
            without bounds.
        TypeError: if the actor is another (``DiffusionActor.from_torchrl`` adapts TorchRL's).
        DataError: if the batch lacks a key or an entry has a wrong shape.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> head = torch.nn.Linear(6, 5)
        >>> prompt = TensorDictModule(head, [("prompt", "text")], ["prompt_embedding"])
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3 + 5)
        >>> loss = LLMDPDLoss(prompt, actor, make_qvalue_networks(3, 2, 5), lmbda=0.1)
        >>> state, flag = torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.bool)
        >>> after = {"observation": state, "reward": flag + 1.0, "done": flag, "terminated": flag}
        >>> data = {"observation": state, "action": torch.zeros(4, 2), "next": after}
        >>> data = TensorDict({**data, "prompt": {"text": torch.randn(4, 6)}}, [4])
        >>> sorted(loss(data).keys())
        ['bc', 'guidance', 'lmbda', 'loss_actor', 'loss_qvalue', 'q_value', 'target_value']

        Without TensorDicts, keys are keyword arguments, joined by underscores where nested:

        >>> loss_actor, loss_qvalue = loss.select_out_keys("loss_actor", "loss_qvalue")(
        ...     observation=state, action=torch.zeros(4, 2), prompt_text=torch.randn(4, 6),
        ...     next_observation=state, next_reward=flag + 1.0, next_done=flag,
        ...     next_terminated=flag)
    """

    @dataclass
    class _AcceptedKeys(DiffusionCloning._AcceptedKeys):
        state_action_value: NestedKey = "state_action_value"
        state_action_logits: NestedKey = "state_action_logits"  # which categorical critics write
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    # The default, DETERMINISTIC, would start the reverse process of every row from one latent.
    deterministic_sampling_mode = ExplorationType.RANDOM
    _schedulable_buffers = frozenset({"lmbda"})
    out_keys = ["loss_actor", "loss_qvalue", "bc", "guidance", "lmbda", "q_value", "target_value"]  # noqa: RUF012
    reads_successors = True
    lmbda: Tensor
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    def __init__(
        self,
        prompt_network: TensorDictModule | None,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        lmbda: NonNegative | Tensor = 1.0,
        guidance: Literal["chain", "one_step"] | Guidance = "chain",
        target_sampling_steps: Size | None = None,
        critic_loss: CriticLoss | None = None,
        reduction: Literal["none", "mean", "sum"] = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        if not isinstance(guidance, Guidance) and guidance not in GUIDANCE_MODES:
            raise ConfigError(f"guidance is {guidance!r}: use {' or '.join(GUIDANCE_MODES)}")
        if not 0 <= float(lmbda) < math.inf:
            raise ConfigError(f"lmbda is {float(lmbda)}: it must be a finite number of at least 0")
        if not isinstance(qvalue_network, list | tuple) or len(qvalue_network) < 2:
            raise ConfigError("qvalue_network must be a list of two critics or more")
        super().__init__(prompt_network, actor_network, reduction=reduction)
        process = self.actor_network.module
        if target_sampling_steps not in (None, *range(1, process.num_steps + 1)):
            most = f"use 1 to {process.num_steps}, the actor's"
            raise ConfigError(f"target_sampling_steps is {target_sampling_steps}: {most}")
        self.guidance = guidance if isinstance(guidance, Guidance) else GUIDANCE[guidance]()
        self.target_sampling_steps = target_sampling_steps
        self.critic_loss = CriticLoss() if critic_loss is None else critic_loss
        self.deactivate_vmap, self.num_qvalue_nets = deactivate_vmap, len(qvalue_network)
        self.convert_to_functional(
            list(qvalue_network), "qvalue_network", len(qvalue_network), create_target_params=True
        )
        self.register_buffer("lmbda", None)
        self.lmbda = torch.tensor(float(lmbda), device=self._default_device)
        self._default_value_estimator()  # now: its gamma is part of the state_dict
        self._make_vmap()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "lmbda":  # noted on the host, so that no update asks the device for it
            self._guided = bool(value != 0)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.lmbda = self.lmbda

    def _make_vmap(self) -> None:
        self._vmap_q = _vmap_func(self.qvalue_network, (None, 0), randomness=self.vmap_randomness)

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        states = dict.fromkeys([*self.actor_network.in_keys, *self.qvalue_network.in_keys])
        states.pop(keys.action, None)
        written = map(unravel_key, self.qvalue_network.out_keys)
        self._is_categorical = unravel_key(keys.state_action_logits) in written
        if self._is_categorical and self.critic_loss.bounds is None:
            raise ConfigError("categorical critics need critic_loss.bounds: where their bins end")
        root = self._set_root_keys(states)
        after = [unravel_key(("next", key)) for key in states if key not in self._prompt_keys]
        columns = [unravel_key(("next", key)) for key in (keys.reward, keys.done, keys.terminated)]
        self._flag_keys, self._state_keys = columns[1:], [*states, *after, *columns]
        self._widths |= dict.fromkeys(columns, 1)
        self.in_keys = [*root, *after, *columns]

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self.value_estimator.set_keys(value=self.tensor_keys.state_action_value)
        super()._forward_value_estimator_keys(**kwargs)

    def make_value_estimator(self, value_type: Any = None, **kwargs: Any) -> None:
        """Choose the estimator of y, one that needs no state value, and its ``gamma`` in [0, 1]."""
        value_type = self.default_value_estimator if value_type is None else value_type
        gamma = float(kwargs.get("gamma", getattr(value_type, "gamma", 0.0)))
        if not 0 <= gamma <= 1:
            raise ConfigError(f"gamma is {gamma}: it must lie in [0, 1]")
        if isinstance(value_type, ValueEstimatorBase | type):
            super().make_value_estimator(value_type, **kwargs)
        else:  # without a network: the next value is put into the data
            known = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)
            kwargs |= {"supported": known, "value_network": None}
            dispatch_value_estimator(self, value_type, **kwargs)
        self._forward_value_estimator_keys()

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d - λ L_r, reduced, and the detached ``bc``, ``guidance`` and ``lmbda``."""
        return self._actor_terms(self._prepare(tensordict, self._root_keys))

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_qvalue, reduced, and the detached means and ``td_error`` (squared, the largest) [*]."""
        return self._qvalue_terms(self._prepare(tensordict, self.in_keys))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute both losses with one encoding of the prompt; see ``in_keys`` and ``out_keys``."""
        data = self._prepare(tensordict, self.in_keys)
        loss_actor, metadata = self._actor_terms(data)
        loss_qvalue, others = self._qvalue_terms(data)
        metadata |= {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, **others}
        tensordict.set(self.tensor_keys.priority, metadata.pop("td_error"))
        return TensorDict(metadata)

    def _actor_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        process = self.actor_network.module
        fixed = data.copy().update({key: data.get(key).detach() for key in self._prompt_keys})
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            # L_d samples its random numbers first, so that guidance cannot change them.
            *denoised, error = self._denoise(data)
            action, extra = None, None
            if self._guided or self.guidance.learns:
                condition = functools.partial(self._condition, fixed)
                action, extra = self.guidance(process, condition, Denoised(*denoised))
        loss = bc = self._reduce(error, data)
        if extra is not None:
            loss = loss + self._reduce(extra if self.reduction == "mean" else extra.mean(-1), data)
        guidance = torch.zeros_like(bc)
        if self._guided:
            assert action is not None
            # Shuffling on the device samples i and j without reading a number back from it.
            order = torch.randperm(self.num_qvalue_nets, device=action.device)
            critics = self.qvalue_network_params.data
            value = self._values(critics[order[:1]], fixed, action)[0]
            with torch.no_grad():
                other = self._values(critics[order[1:2]], fixed, action)[0]
                scale = self._reduce_loss(other.abs(), data, reduction="mean")
            guidance = self._reduce(value / scale.clamp_min(torch.finfo(scale.dtype).eps), data)
            loss = loss - self.lmbda * guidance
        metadata = {"bc": bc, "guidance": guidance, "lmbda": self.lmbda.clone()}
        return loss, {key: number.detach() for key, number in metadata.items()}

    def _qvalue_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        actor, steps = self.actor_network, self.target_sampling_steps
        with torch.no_grad():
            after = step_mdp(data.select(*self._state_keys))  # keeps the root's prompt
            with self.target_actor_network_params.to_module(actor, preserve_module_state=False):
                action = self.guidance.next_action(actor.module, self._condition(after), steps)
            values = self._values(self.target_qvalue_network_params, after, action)
            data.set(("next", self.tensor_keys.state_action_value), values.amin(0).unsqueeze(-1))
            target = self.value_estimator.value_estimate(data).squeeze(-1)
            target = self.critic_loss.clip(target)
        values, logits = self._evaluate(
            self.qvalue_network_params, data, data.get(self.tensor_keys.action)
        )
        error = self.critic_loss(values, target, logits)
        metadata = {"q_value": values.detach().mean(), "target_value": target.mean()}
        priority = (values.detach() - target).square().amax(0)
        return self._reduce(error.sum(0), data), {**metadata, "td_error": priority}

    def _values(self, params: TensorDictBase, data: TensorDictBase, action: Tensor) -> Tensor:
        """Values of ``action`` [*, A] by the N critics in ``params``: [N, *]."""
        return self._evaluate(params, data, action)[0]

    def _evaluate(
        self, params: TensorDictBase, data: TensorDictBase, action: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The same, and the logits [N, *, n] of categorical critics."""
        critic, keys = self.qvalue_network, self.tensor_keys
        batch = data.select(*critic.in_keys, strict=False).set(keys.action, action)
        if self.deactivate_vmap:
            found = []  # TorchRL's pseudo-vmap takes a millisecond and makes compilers start again
            for one in params.unbind(0):
                with one.to_module(critic, preserve_module_state=False):
                    found.append(critic(batch.copy()))
        else:
            found = [self._vmap_q(batch, params)]

        def read(key: NestedKey) -> Tensor:
            values = [one.get(key) for one in found]
            return torch.stack(values) if self.deactivate_vmap else values[0]

        logits = read(keys.state_action_logits) if self._is_categorical else None
        return read(keys.state_action_value).squeeze(-1), logits


class DiffusionQLLoss(LLMDPDLoss):
    """Diffusion-QL (Wang et al. 2023): :class:`LLMDPDLoss` without a prompt; ``lmbda`` is its η.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3, in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2), lmbda=1.0)
    """

    def __init__(
        self, actor_network: TensorDictModule, qvalue_network: list[TensorDictModule], **kwargs: Any
    ) -> None:
        super().__init__(None, actor_network, qvalue_network, **kwargs)
