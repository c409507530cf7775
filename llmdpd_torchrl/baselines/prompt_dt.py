"""Prompt-DT: a decision transformer that is shown a demonstration as a prompt.

From "Prompting Decision Transformer for Few-Shot Policy Generalization" (Xu et al. 2022): the
prompt's tokens (return-to-go, state, action) stand before those of the recent history, all actions
of the history are predicted from their state tokens, with a squared error, and acting asks for a
return. Context of 20 steps, prompt of 5, three layers of 128 with one head, dropout 0.1, learning
rate 1e-4: ``configs/algorithm/prompt_dt_paper.yaml``; ``prompt_dt.yaml`` is smaller, for a CPU.

What differs here, so that all that are compared see the same and are run alike:

- The prompt is what others are shown, a demonstration cut to evenly spaced steps, the first and the
  last among them; the original's are successive ones.
- The return that is asked for is the shown demonstration's own. The original sets one by hand for
  each task, which could not be done for a task that nobody has trained on.
- Positions are those in the sequence, as in TorchRL's decision transformer, and not the steps of
  the episode; a prompt's steps are far apart in any case.
- Batches are drawn over all transitions, not task by task; observations are standardised over all
  training tasks; gradients are clipped, and the learning rate falls, as for all algorithms.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from llmdpd_torchrl.modules.actors.decision_transformer import DecisionTransformerActor
from llmdpd_torchrl.objectives.sequence import SequenceLoss

__all__ = ["PromptDT"]


class PromptDT(SequenceLoss):
    """The squared error of the actions at all steps of the history (Xu et al. 2022, algorithm 1).

    Args:
        actor_network: a :class:`~llmdpd_torchrl.modules.DecisionTransformerActor`.

    Keyword Args:
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``, over rows.

    Raises:
        TypeError: if the actor is another; and as
            :class:`~llmdpd_torchrl.objectives.SequenceLoss` does.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import ObservationFeatures, PromptDecisionTransformer
        >>> features = ObservationFeatures({"state": (0, 3)}, keep=["state"])
        >>> network = PromptDecisionTransformer(features, 2, 4, 5, width=8, layers=1)
        >>> loss = PromptDT(DecisionTransformerActor(network))
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> batch = {"prompt": {"trajectory": steps(4)}, "history": steps(5)}
        >>> batch = TensorDict({**batch, "action": torch.rand(6, 2)}, [6])
        >>> sorted(loss(batch).keys())
        ['bc', 'loss_actor']
    """

    data_keys = ("action", "history_action", "history_mask")
    actor_network: DecisionTransformerActor

    def __init__(self, actor_network: DecisionTransformerActor, *, reduction: str = "mean") -> None:
        if not isinstance(actor_network, DecisionTransformerActor):
            raise TypeError(
                f"PromptDT trains a DecisionTransformerActor, got {type(actor_network).__name__}"
            )
        super().__init__(actor_network, reduction=reduction)

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        keys = self.tensor_keys
        present = data.get(keys.action).unsqueeze(-2)
        wanted = torch.cat([data.get(keys.history_action)[..., :-1, :], present], dim=-2)
        actions = self.actor_network.actions(data)
        return (actions - wanted).square(), data.get(keys.history_mask)
