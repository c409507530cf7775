"""The objective of LLM-Driven Policy Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor

from llmdpd_torchrl.objectives.alignment import aligned_width, batch_alignment
from llmdpd_torchrl.objectives.base import PromptedActorCriticLoss
from llmdpd_torchrl.objectives.checks import check_names, check_weight
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["GUIDANCE_MODES", "PROMPT_GRADIENTS", "Q_NORMALIZATIONS", "LLMDPDLoss"]

#: How the action that the critics judge is made.
GUIDANCE_MODES = ("chain", "one_step")
#: What a value is divided by in the guidance term.
Q_NORMALIZATIONS = ("cross", "own", "none")
#: The terms whose gradient may reach the prompt encoder.
PROMPT_GRADIENTS = ("diffusion", "qvalue", "guidance")


class _Noised(NamedTuple):
    """One noised forward pass of the denoiser, shared by L_d and one-step guidance."""

    condition: Tensor
    step: Tensor
    noisy: Tensor
    output: Tensor
    squared_error: Tensor


class LLMDPDLoss(PromptedActorCriticLoss):
    r"""Prompt-conditioned diffusion behaviour cloning with Q guidance, and the critics' TD loss.

    From `"LLM-Driven Policy Diffusion" <https://arxiv.org/abs/2509.00347>`_. With z the embedding
    of the task's prompt,

    .. math::
        L_d &= E_{k, \epsilon, (s, a)} \|\epsilon - \epsilon_\theta(a_k, k, s, z)\|^2 \\
        L_r &= E_{s, a^0 \sim \pi_\theta(\cdot|s, z)} Q_i(s, a^0, z)
               \;/\; \mathrm{stopgrad}\, E|Q_j(s, a^0, z)| \\
        L_{actor} &= L_d - \lambda L_r \\
        L_{qvalue} &= \sum_j E\,(Q_j(s, a, z) - y)^2, \quad
        y = r + \gamma (1 - terminated) \min_j Q'_j(s', a', z), \; a' \sim \pi'_{\theta'}(s', z).

    The squared norm is averaged over the action's dimensions, as in Diffusion-QL. z is encoded once
    per forward and serves actor, critics and both target networks; the prompt of s' is that of s.

    The gradient that reaches the prompt encoder comes from the terms named in ``prompt_gradient``.
    The z that the critics read in L_r is always detached: an encoder could otherwise raise Q by
    changing what Q is told instead of what the policy does.

    Args:
        prompt_network (TensorDictModule or None): the prompt encoder. ``None`` if there is no
            prompt or if its embedding is in the data already.
        actor_network (TensorDictModule): :class:`~llmdpd_torchrl.modules.DiffusionActor`, or
            TorchRL's.
        qvalue_network (list of TensorDictModule): two critics or more. A list, because TorchRL
            draws new weights for copies of a single one.

    Keyword Args:
        lmbda (float or Tensor): λ ≥ 0, a buffer: assign to ``loss.lmbda`` to schedule it. While it
            is 0 the actor is trained by pure behaviour cloning, bit for bit, and L_r is not
            computed.
        guidance (str): ``"chain"`` differentiates Q through all reverse steps (Diffusion-QL).
            ``"one_step"`` judges the clean action behind L_d's own noised forward pass (EDP, Kang
            et al. 2023), without another run of the denoiser, and before any limit that the actor's
            samples have.
        q_normalization (str): ``"cross"`` divides Q_i, i random, by another critic's mean
            magnitude; ``"own"`` by its own; ``"none"`` by nothing.
        prompt_gradient (sequence of str, optional): some of :data:`PROMPT_GRADIENTS`. Defaults to
            ``("diffusion", "qvalue")``; with ``"one_step"`` guidance, ``"guidance"`` shares the
            forward pass of ``"diffusion"`` and so must be given with it, and is by default.
        alignment (float): weight, in the actor's loss, of a contrastive loss between the text's and
            the trajectory's part of z, see :func:`~llmdpd_torchrl.objectives.alignment_loss`.
            Needs a :class:`~llmdpd_torchrl.modules.PromptNetwork` with both parts. It is a mean
            over the batch whatever the reduction, and added to each row where that is ``"none"``.
        max_q_backup (int): candidates a' per next state, of which each target critic's best counts.
            0 and 1 mean a single one.
        target_sampling_steps (int, optional): reverse steps of a', if fewer than the actor's.
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``.
        deactivate_vmap (bool): run the critics one after the other instead of under vmap.
        use_prioritized_weights (bool or "auto"): weigh rows by ``priority_weight``.
        check_inputs (bool or "auto"): whether to look for NaN and infinity in batch and losses, and
            for actions that the actor can not make. It costs 0.5 % of an update on a CPU, but a
            device would have to be waited for: ``"auto"`` looks on the CPU only. Missing keys and
            wrong shapes are always found. A compiled loss never looks at values.

    γ and the estimator are set by :meth:`make_value_estimator` (TD(0), γ = 0.99 by default).

    Besides the two losses the output holds detached scalars: ``bc`` (L_d), ``guidance`` (L_r, 0
    while λ is 0), ``lmbda``, ``q_value`` and ``target_value`` (batch means), and ``alignment`` if
    it has a weight. They do not start with "loss", since trainers sum what does. Priorities are
    written to ``td_error`` in the input.

    Raises:
        ConfigError: on an unknown name or combination, a number out of range or fewer than two
            critics; in a batch, if a loss is not finite though the data is.
        DataError: if the batch lacks a key, has a wrong shape, NaN, infinity, or an action outside
            the actor's range.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> prompt = TensorDictModule(
        ...     torch.nn.Linear(6, 5), in_keys=[("prompt", "text")], out_keys=["prompt_embedding"]
        ... )
        >>> actor = DiffusionActor(action_dim=2, condition_dim=3 + 5)
        >>> loss = LLMDPDLoss(prompt, actor, make_qvalue_networks(3, 2, 5), lmbda=0.1)
        >>> data = TensorDict(
        ...     {
        ...         "observation": torch.randn(4, 3),
        ...         "action": torch.rand(4, 2) * 2 - 1,
        ...         ("prompt", "text"): torch.randn(4, 6),
        ...         ("next", "observation"): torch.randn(4, 3),
        ...         ("next", "reward"): torch.randn(4, 1),
        ...         ("next", "done"): torch.zeros(4, 1, dtype=torch.bool),
        ...         ("next", "terminated"): torch.zeros(4, 1, dtype=torch.bool),
        ...     },
        ...     [4],
        ... )
        >>> sorted(loss(data).keys())
        ['bc', 'guidance', 'lmbda', 'loss_actor', 'loss_qvalue', 'q_value', 'target_value']

    Without TensorDicts, the input keys are keyword arguments, joined by underscores where nested:

    Examples:
        >>> _ = loss.select_out_keys("loss_actor", "loss_qvalue")
        >>> loss_actor, loss_qvalue = loss(
        ...     observation=torch.randn(4, 3),
        ...     action=torch.rand(4, 2) * 2 - 1,
        ...     prompt_text=torch.randn(4, 6),
        ...     next_observation=torch.randn(4, 3),
        ...     next_reward=torch.randn(4, 1),
        ...     next_done=torch.zeros(4, 1, dtype=torch.bool),
        ...     next_terminated=torch.zeros(4, 1, dtype=torch.bool),
        ... )
        >>> (loss_actor + loss_qvalue).backward()
    """

    _schedulable_buffers = frozenset({"lmbda"})
    out_keys = [  # noqa: RUF012 (TorchRL's convention; select_out_keys sets it per instance)
        "loss_actor",
        "loss_qvalue",
        "bc",
        "guidance",
        "lmbda",
        "q_value",
        "target_value",
    ]

    lmbda: Tensor

    def __init__(
        self,
        prompt_network: TensorDictModule | None,
        actor_network: TensorDictModule,
        qvalue_network: Sequence[TensorDictModule],
        *,
        lmbda: float | Tensor = 1.0,
        guidance: str = "chain",
        q_normalization: str = "cross",
        prompt_gradient: Sequence[str] | None = None,
        alignment: float = 0.0,
        max_q_backup: int = 1,
        target_sampling_steps: int | None = None,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        check_inputs: str | bool = "auto",
    ) -> None:
        check_names("guidance", [guidance], GUIDANCE_MODES)
        check_names("q_normalization", [q_normalization], Q_NORMALIZATIONS)
        check_weight("lmbda", lmbda)
        check_weight("alignment", alignment)
        width = aligned_width(prompt_network) if alignment else 0
        if max_q_backup < 0:
            raise ConfigError(f"max_q_backup is {max_q_backup}: it can not be negative")
        if prompt_gradient is None:
            prompt_gradient = PROMPT_GRADIENTS[: 3 if guidance == "one_step" else 2]
        check_names("prompt_gradient", prompt_gradient, PROMPT_GRADIENTS)
        if (
            prompt_network is not None
            and guidance == "one_step"
            and ("diffusion" in prompt_gradient) != ("guidance" in prompt_gradient)
        ):
            raise ConfigError(
                'with guidance="one_step", prompt_gradient must hold both "diffusion" and '
                '"guidance", or neither: the two terms share one forward pass'
            )
        super().__init__(
            prompt_network,
            actor_network,
            qvalue_network,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
            check_inputs=check_inputs,
        )
        most = self._process.num_steps
        if target_sampling_steps is not None and not 1 <= target_sampling_steps <= most:
            raise ConfigError(
                f"target_sampling_steps is {target_sampling_steps}: the actor takes 1 to {most}"
            )
        self.alignment = alignment
        self._aligned_width = width
        if alignment:
            self.out_keys = [*self.out_keys, "alignment"]
        self.guidance = guidance
        self.q_normalization = q_normalization
        self.prompt_gradient = frozenset(prompt_gradient)
        self.num_target_actions = max(max_q_backup, 1)
        self.target_sampling_steps = target_sampling_steps
        device = self._default_device
        self.register_coeff_buffer("lmbda", lmbda, device=device, dtype=torch.get_default_dtype())

    # ------------------------------------------------------------------ lambda

    @property
    def guided(self) -> bool:
        """Whether λ is not 0, so that L_r takes part.

        The buffer is looked at only when it has changed: asking a device for a value at every
        update would stall it. A compiled loss can not look, so it always computes L_r.
        """
        if torch.compiler.is_compiling():
            return True
        lmbda = self.lmbda
        seen = self.__dict__.get("_lmbda_seen")
        if seen is None or seen[0] is not lmbda or seen[1] != lmbda._version:
            seen = self.__dict__["_lmbda_seen"] = (lmbda, lmbda._version, bool(lmbda != 0))
        return seen[2]

    # ------------------------------------------------------------------ public terms

    def diffusion_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d alone.

        Returns:
            the reduced loss, and metadata with the detached ``"bc"``.
        """
        data = self._prepare(tensordict, following=False)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            noised = self._noised(data)
        bc = self._reduce_elements(noised.squared_error, data)
        self._check_losses(diffusion_loss=bc)
        self._forget(tensordict, data)
        return bc, {"bc": bc.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d - λ L_r, and the alignment if it has a weight.

        Returns:
            the reduced loss, and metadata with the detached ``"bc"``, ``"guidance"`` and
            ``"lmbda"``.
        """
        data = self._prepare(tensordict, following=False)
        loss, metadata = self._actor_terms(data)
        self._check_losses(actor_loss=loss)
        self._forget(tensordict, data)
        return loss, metadata

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the critics' squared TD errors.

        Returns:
            the reduced loss, and metadata with the detached ``"td_error"`` (squared, the critics'
            largest, per row), ``"q_value"`` and ``"target_value"``.
        """
        data = self._prepare(tensordict)
        loss, metadata = self._qvalue_terms(data)
        self._check_losses(qvalue_loss=loss)
        self._forget(tensordict, data)
        return loss, metadata

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute both losses with one encoding of the prompt; see ``in_keys`` and ``out_keys``."""
        data = self._prepare(tensordict)
        loss_actor, actor_metadata = self._actor_terms(data)
        loss_qvalue, qvalue_metadata = self._qvalue_terms(data)
        self._check_losses(loss_actor=loss_actor, loss_qvalue=loss_qvalue)
        tensordict.set(self.tensor_keys.priority, qvalue_metadata.pop("td_error"))
        out = TensorDict(
            {
                "loss_actor": loss_actor,
                "loss_qvalue": loss_qvalue,
                **actor_metadata,
                **qvalue_metadata,
            }
        )
        self._forget(tensordict, data, out)
        return out

    # ------------------------------------------------------------------ the actor's terms

    def _actor_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        guided = self.guided
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            # L_d draws its random numbers first, so that guidance can not change them.
            noised = self._noised(data)
            proposal = self._proposal(data, noised) if guided else None
        loss = bc = self._reduce_elements(noised.squared_error, data)
        guidance = torch.zeros_like(bc)
        if proposal is not None:
            weights = self._maybe_get_priority_weight(data)
            guidance = self._reduce_loss(self._merit(data, proposal), data, weights=weights)
            loss = bc - self.lmbda * guidance
        metadata = {
            "bc": bc.detach(),
            "guidance": guidance.detach(),
            "lmbda": self.lmbda.clone(),
        }
        if self.alignment:
            network = self.prompt_network
            assert network is not None  # aligned_width has seen it
            aligned = batch_alignment(
                data, network.in_keys, network.out_keys[0], self._aligned_width
            )
            loss = loss + self.alignment * aligned
            metadata["alignment"] = aligned.detach()
        return loss, metadata

    def _noised(self, data: TensorDictBase) -> _Noised:
        process = self._process
        action = self._read(data, self.tensor_keys.action)
        condition = self._condition(data, attached="diffusion" in self.prompt_gradient)
        step = torch.randint(0, process.num_steps, action.shape[:-1], device=action.device)
        noisy, noise = process.add_noise(action, step)
        output = process.denoise(noisy, condition, step)
        target = process.target(action, noise, step)
        squared_error = torch.nn.functional.mse_loss(output, target, reduction="none")
        return _Noised(condition, step, noisy, output, squared_error)

    def _proposal(self, data: TensorDictBase, noised: _Noised) -> Tensor:
        """The policy's action, as a differentiable function of the actor's parameters."""
        if self.guidance == "one_step":
            return self._process.predict_clean(noised.noisy, noised.step, noised.output)
        condition = noised.condition
        attached = "guidance" in self.prompt_gradient
        if attached != ("diffusion" in self.prompt_gradient):
            condition = self._condition(data, attached=attached)
        return self._process.sample(condition)

    def _merit(self, data: TensorDictBase, action: Tensor) -> Tensor:
        """Normalised value of ``action`` per row, by a critic drawn at random: [*]."""
        # Shuffling on the device picks i and j without reading a number back from it.
        order = torch.randperm(self.num_qvalue_nets, device=action.device)
        params = self._cached_detached_qvalue_params
        value = self._values(params[order[:1]], data, action, attached=False)[0]
        if self.q_normalization == "none":
            return value
        if self.q_normalization == "own":
            other = value.detach()
        else:
            with torch.no_grad():
                other = self._values(params[order[1:2]], data, action, attached=False)[0]
        scale = self._reduce_loss(other.abs(), data, reduction="mean")
        return value / scale.clamp_min(torch.finfo(scale.dtype).eps)

    # ------------------------------------------------------------------ the critics' terms

    def _qvalue_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        data = data.copy()
        with torch.no_grad():
            next_value = self._next_value(data).unsqueeze(-1)
            data.set(("next", self.tensor_keys.state_action_value), next_value)
            target = self.value_estimator.value_estimate(data).squeeze(-1)
        action = self._read(data, self.tensor_keys.action)
        values = self._values(
            self.qvalue_network_params, data, action, attached="qvalue" in self.prompt_gradient
        )
        squared_error = (values - target).square()
        weights = self._maybe_get_priority_weight(data)
        loss = self._reduce_loss(squared_error.sum(0), data, weights=weights)
        return loss, {
            "td_error": squared_error.detach().amax(0),
            "q_value": values.detach().mean(),
            "target_value": target.mean(),
        }

    def _next_value(self, data: TensorDictBase) -> Tensor:
        """min_j Q'_j(s', a', z), or min_j max_n over ``num_target_actions`` candidates: [*]."""
        copies = self.num_target_actions
        with self.target_actor_network_params.to_module(
            self.actor_network, preserve_module_state=False
        ):
            condition = self._condition(data, following=True)
            if copies > 1:
                condition = condition.expand(copies, *condition.shape)
            action = self._process.sample(condition, num_steps=self.target_sampling_steps)
        values = self._values(
            self.target_qvalue_network_params, data, action, following=True, copies=copies
        )
        if copies > 1:
            values = values.amax(1)
        return values.amin(0)
