"""The condition of an actor that retrieves: the state behind a gate, and what is suggested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmdpd_torchrl.modules.conditioning import ObservationConditioner
from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.prompts.retrieval_spec import ContextLayout


class SuggestionAttention(nn.Module):
    """One base action of the suggestions in a context: their mean under learned weights.

    Which suggestion to trust changes from task to task and within an episode, but what tells it
    does not: which objects move, how far the prompt is off, what comes next. So the weights are a
    softmax of an MLP on the entire context, trained on many tasks and used on others.

    Args:
        layout: of the context.
        hidden: widths of the MLP.
        activation: of the MLP.

    Shapes: ``[*, C]`` to ``[*, A]``.

    Examples:
        >>> from llmdpd_torchrl.prompts import METAWORLD_RETRIEVAL
        >>> from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
        >>> layout = METAWORLD_RETRIEVAL.layout(METAWORLD_OBSERVATION_LAYOUT["fields"], 4)
        >>> SuggestionAttention(layout)(torch.zeros(2, layout.width)).tolist()
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        layout: ContextLayout,
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.layout = layout
        self.network = make_mlp(layout.width, hidden, layout.suggestions, activation)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """The base action of contexts."""
        weights = self.weights(context).unsqueeze(-1)
        parts, layout = self.layout.parts, self.layout
        moves = context[..., parts["suggestions"]].unflatten(-1, (layout.suggestions, layout.moves))
        grips = context[..., parts["grips"]].unflatten(-1, (layout.suggestions, layout.grips))
        # The command of a gripper differs from task to task where it makes no difference, as in
        # holding open what is open: movements alone say which suggestion to trust.
        return torch.cat([(weights * moves).sum(-2), (weights.detach() * grips).sum(-2)], -1)

    def weights(self, context: torch.Tensor) -> torch.Tensor:
        """The weights ``[*, S]`` of the suggestions, 0 for those that mean nothing."""
        is_usable = context[..., self.layout.parts["usable"]] > 0
        # A finite number: without a prompt no suggestion is usable, and all of them are zero.
        return self.network(context).masked_fill(~is_usable, -1e4).softmax(-1)


class GatedConditioner(ObservationConditioner):
    """The condition of an actor that retrieves: state and embedding pass the observation gate.

    A network memorises its training tasks by their states and their embeddings, and on another task
    both mislead it. So both are multiplied by the gate, which is 0 there (see
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`). The context of the retrieved
    steps is not.

    Args:
        observation_module: maps observations to features.
        attention: makes a base action of the context, [*, C] to [*, A]. It is repeated at the end
            of the condition, followed by a bound: how far an action may be from it, see
            :class:`~llmdpd_torchrl.modules.ResidualDenoiser`. Where the gate is open the base is 0
            and the bound 1: with the state visible, the policy is not bound to the prompt.
        max_residual: the bound where the gate is closed.

    Shapes: observation ``[*, O]``, gate ``[*, 1]`` in {0, 1}, context ``[*, C]`` and any number of
    embeddings ``[*, C_i]``, to ``[*, out_features + 1 + C + sum C_i (+ 2 A)]``.

    Examples:
        >>> conditioner = GatedConditioner(nn.Identity())
        >>> observation, context, gate = torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 1)
        >>> conditioner(observation, gate, context)
        tensor([[0., 0., 0., 1., 1.]])
    """

    def __init__(
        self,
        observation_module: nn.Module,
        attention: SuggestionAttention | None = None,
        max_residual: float = 0.3,
    ) -> None:
        super().__init__(observation_module)
        self.attention = attention
        self.max_residual = max_residual

    def forward(self, observation: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Concatenate gated features, gate, context, gated embeddings, base and bound."""
        features = self.observation_module(observation)
        # Transforms write float32, whatever the precision of the policy.
        gate, context, *embeddings = (part.to(features.dtype) for part in others)
        condition = [features * gate, gate, context, *(part * gate for part in embeddings)]
        if self.attention is not None:
            base = self.attention(context) * (1.0 - gate)
            bound = self.max_residual + (1.0 - self.max_residual) * gate
            condition += [base, bound.expand_as(base)]
        return torch.cat(condition, dim=-1)
