"""Prompt-DT and MTDiff-p: policies that read sequences, prompted with one demonstration.

Both are conditioned, like all policies here, on a demonstration cut to evenly spaced steps (the
first and the last among them), and, while acting, on the demonstration's return as the target
return: the originals set one by hand for each task, or normalise returns per task, neither of which
is possible for a task that was not trained on. Batches, standardisation, gradient clipping and the
decay of the learning rate are those of all algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType
from torchrl.objectives.common import LossModule

from llmdpd_torchrl.modules.actors.decision_transformer import DecisionTransformerActor
from llmdpd_torchrl.modules.actors.plan_diffusion import PlanDenoiser, PlanDiffusionActor
from llmdpd_torchrl.objectives.cloning import REDUCTIONS
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.settings import Dropout


class SequenceLoss(LossModule):
    """The error of a sequence of actions, averaged over the valid steps of a row.

    A subclass defines the error, the class of its actor, and the keys of the actions that it
    imitates and of their mask, which it reads beside those of the actor. These are executed
    actions or, after ``set_keys(expert_action=...)``, what the expert wanted at the same steps; the
    actor reads executed ones in both cases.

    The output has ``loss_actor`` and, detached, ``bc``: the same number, under the name
    that the logs of all algorithms share. Floating-point entries are cast to the actor's precision.
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"  # the present one, [*, A]
        history_action: NestedKey = ("history", "action")  # of the steps before, [*, H, A]
        history_mask: NestedKey = ("history", "mask")  # [*, H]
        plan: NestedKey = ("future", "action")  # the next actions, [*, F, A]
        plan_mask: NestedKey = ("future", "mask")  # whether they exist, [*, F]
        expert_action: NestedKey | None = None  # imitated in place of ``action``, [*, A]
        # Where expert_action is set, in place of history_action [*, H, A] and plan [*, F, A].
        history_expert_action: NestedKey = ("history", "expert_action")
        expert_plan: NestedKey = ("future", "expert_action")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = None
    deterministic_sampling_mode = ExplorationType.RANDOM
    actor_class: type[TensorDictModule]
    # Fields of the accepted keys: executed actions, labels in the same order, and the mask of both.
    executed_keys: tuple[str, ...]
    label_keys: tuple[str, ...]
    mask_key: str
    out_keys = ["loss_actor", "bc"]  # noqa: RUF012 (TorchRL's convention)

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: TensorDictModule,
        *,
        reduction: Literal["none", "mean", "sum"] = "mean",
    ) -> None:
        if not isinstance(actor_network, self.actor_class):
            raise TypeError(
                f"{type(self).__name__} trains a {self.actor_class.__name__}, got "
                f"{type(actor_network).__name__}"
            )
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction is {reduction!r}: use {' or '.join(REDUCTIONS)}")
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network")
        self.reduction = reduction
        self._set_in_keys()

    def _set_in_keys(self) -> None:
        executed = self.tensor_keys.expert_action is None
        names = self.executed_keys if executed else self.label_keys
        self._imitated = [getattr(self.tensor_keys, name) for name in names]
        keys = [*self._imitated, getattr(self.tensor_keys, self.mask_key)]
        self.in_keys = list(dict.fromkeys([*keys, *self.actor_network.in_keys]))

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        self._set_in_keys()  # the hook that set_keys ends with

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Squared errors [*, n, A] and the mask [*, n] of those that count."""
        raise NotImplementedError

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss; see ``in_keys`` and ``out_keys``."""
        data = tensordict.copy()
        dtype = next(self.actor_network_params.parameters()).dtype
        for key in self.in_keys:
            value = data.get(key, None)
            if value is None:
                raise DataError(
                    f"the batch has no {key!r}, which {type(self).__name__} reads: add it to the "
                    "data (HistoryTransform, TrajectoryPromptTransform), or rename it with set_keys"
                )
            if value.is_floating_point():
                data.set(key, value.to(dtype))
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            errors, mask = self._errors(data)
        weight = mask.to(errors.dtype)
        # A row without valid steps counts as 0, not as NaN.
        row = (errors.mean(-1) * weight).sum(-1) / weight.sum(-1).clamp_min(1.0)
        loss = self._reduce_loss(row, data, weights=self._maybe_get_priority_weight(data))
        self._clear_weakrefs(tensordict, data, "actor_network_params")
        return TensorDict({"loss_actor": loss, "bc": loss.detach()})


class PromptDT(SequenceLoss):
    """The squared error of the actions at all steps of the history (Xu et al. 2022, algorithm 1).

    "Prompting Decision Transformer for Few-Shot Policy Generalization": the prompt's tokens
    (return-to-go, state, action) precede those of the recent history, and all actions of the
    history are predicted from their state tokens. Context of 20 steps, prompt of 5, three layers of
    128 with one head, dropout 0.1, learning rate 1e-4: ``configs/algorithm/prompt_dt_paper.yaml``;
    ``prompt_dt.yaml`` is smaller, for a CPU.

    Unlike the original's, the prompt's steps are not successive; positions are those in the
    sequence, as in TorchRL's decision transformer, and not the steps of the episode; and batches
    are sampled over all transitions, not task by task.

    Args:
        actor_network: a :class:`~llmdpd_torchrl.modules.DecisionTransformerActor`.

    Keyword Args:
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``, over rows.

    Raises:
        ConfigError: on an unknown reduction.
        TypeError: if the actor is another.
        DataError: if the batch lacks a key.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, SequenceConfig, make_networks
        >>> config = NetworkConfig(
        ...     prompt="trajectory", conditioning="sequence", actor="decision_transformer",
        ...     observation_fields={"state": (0, 3)}, observation_keep=["state"], action_dim=2,
        ...     trajectory_length=4, sequence=SequenceConfig(history=5, width=8, layers=1))
        >>> loss = PromptDT(make_networks(config).actor)
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> batch = {"prompt": {"trajectory": steps(4)}, "history": steps(5)}
        >>> batch = TensorDict({**batch, "action": torch.rand(6, 2)}, [6])
        >>> sorted(loss(batch).keys())
        ['bc', 'loss_actor']
    """

    actor_class = DecisionTransformerActor
    executed_keys = ("action", "history_action")
    label_keys = ("expert_action", "history_expert_action")
    mask_key = "history_mask"
    actor_network: DecisionTransformerActor

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        present, history = (data.get(key) for key in self._imitated)
        wanted = torch.cat([history[..., :-1, :], present.unsqueeze(-2)], dim=-2)
        actions = self.actor_network.actions(data)
        return (actions - wanted).square(), data.get(self.tensor_keys.history_mask)


class MTDiff(SequenceLoss):
    """The squared error of denoising a plan, where it lies within the episode (He et al. 2023).

    "Diffusion Model is an Effective Planner and Data Synthesizer for Multi-Task Reinforcement
    Learning", the planner: a transformer like GPT-2 denoises the next 32 actions given the last 2
    states, a return and a prompt of 20 steps, with classifier-free guidance of 1.2 by the return;
    the first action is executed and the next step plans again. Four layers of 256, 200 diffusion
    steps, learning rate 2e-4: ``configs/algorithm/mtdiff_paper.yaml``; ``mtdiff.yaml`` is smaller,
    for a CPU.

    Unlike in the original, the return is the return-to-go; diffusion step and return are added to
    the plan's tokens, and attention is not causal, but prompt and history do not attend to the
    plan, so that they are encoded once per plan; noise schedule, prediction and sampler are this
    library's.

    Args:
        actor_network: a :class:`~llmdpd_torchrl.modules.PlanDiffusionActor`.

    Keyword Args:
        return_dropout (float): probability of hiding the return, so that it can guide samples.
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``, over rows.

    Raises:
        ConfigError: if ``return_dropout`` is not in [0, 1), or 0 though the actor guides; on an
            unknown reduction.
        TypeError: if the actor is another.
        DataError: if the batch lacks a key.

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, SequenceConfig, make_networks
        >>> config = NetworkConfig(
        ...     prompt="trajectory", conditioning="sequence", actor="plan_diffusion", action_dim=2,
        ...     observation_fields={"state": (0, 3)}, observation_keep=["state"],
        ...     trajectory_length=4, sequence=SequenceConfig(history=2, horizon=8, width=16))
        >>> loss = MTDiff(make_networks(config).actor)
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> batch = {"prompt": {"trajectory": steps(4)}, "history": steps(2), "future": steps(8)}
        >>> sorted(loss(TensorDict(batch, [6])).keys())
        ['bc', 'loss_actor']
    """

    actor_class = PlanDiffusionActor
    executed_keys = ("plan",)
    label_keys = ("expert_plan",)
    mask_key = "plan_mask"
    actor_network: PlanDiffusionActor

    def __init__(
        self, actor_network: PlanDiffusionActor, *, return_dropout: Dropout = 0.25, **kwargs: Any
    ) -> None:
        super().__init__(actor_network, **kwargs)
        guides = cast(PlanDenoiser, actor_network.module.score_network).guidance != 1.0
        if not 0.0 <= return_dropout < 1.0 or (guides and not return_dropout):
            raise ConfigError(
                f"loss.return_dropout is {return_dropout}: it must be below 1, and above 0 where "
                "network.sequence.guidance is not 1"
            )
        self.return_dropout = return_dropout

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        actor = self.actor_network
        process = actor.module
        actions = data.get(self._imitated[0])
        plan = actions.flatten(-2)
        rows = plan.shape[:-1]
        condition = process.condition(*(data.get(key) for key in actor.in_keys))
        hidden = torch.rand(rows, device=plan.device) < self.return_dropout
        condition = cast(PlanDenoiser, process.score_network).hide_return(condition, hidden)
        step = torch.randint(0, process.num_steps, rows, device=plan.device)
        noisy, noise = process.add_noise(plan, step)
        output = process.denoise(noisy, condition, step)
        errors = (output - process.target(plan, noise, step)).square()
        return errors.reshape(actions.shape), data.get(self.tensor_keys.plan_mask)
