"""MTDiff-p: a diffusion over the next actions together, under a demonstration and a return.

From "Diffusion Model is an Effective Planner and Data Synthesizer for Multi-Task Reinforcement
Learning" (He et al. 2023), the planner: a transformer like GPT-2 denoises the next 32 actions given
the last 2 states, a return and a prompt of 20 steps; classifier-free guidance of 1.2 by the return;
the first action is executed and the next step plans anew. Four layers of 256, 200 diffusion steps,
learning rate 2e-4: ``configs/algorithm/mtdiff_paper.yaml``; ``mtdiff.yaml`` is smaller, for a CPU.

What differs here, so that all that are compared see the same and are run alike:

- The prompt is what others are shown, a demonstration cut to evenly spaced steps.
- The return is that to go, and while acting that of the shown demonstration less what was gained;
  the original's is normalised for each task, which could not be done for one that nobody has
  trained on.
- Diffusion step and return are added to the plan's tokens and not tokens of their own, and
  attention is not causal, but prompt and history do not read the plan: so they are read once a
  plan, and not once a denoising step and again for the guidance.
- Noise schedule, prediction and sampler are this library's, and may be chosen; the small
  configuration samples in few steps.
- Batches, standardisation, clipping and the learning rate's decay are those of all algorithms.
"""

from __future__ import annotations

from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from llmdpd_torchrl.modules.actors.plan_diffusion import PlanDenoiser, PlanDiffusionActor
from llmdpd_torchrl.objectives.sequence import SequenceLoss
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["MTDiff"]


class MTDiff(SequenceLoss):
    """The squared error of denoising a plan, where it lies within the episode (He et al. 2023).

    Args:
        actor_network: a :class:`~llmdpd_torchrl.modules.PlanDiffusionActor`.

    Keyword Args:
        return_dropout (float): how often the return is hidden, so that samples can be guided by it.
        reduction (str): ``"none"`` | ``"mean"`` | ``"sum"``, over rows.

    Raises:
        ConfigError: if ``return_dropout`` is not in [0, 1), or 0 though the actor guides.
        TypeError: if the actor is another; and as
            :class:`~llmdpd_torchrl.objectives.SequenceLoss` does.

    Randomness comes from torch's global generator.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import (
        ...     ObservationFeatures, SequenceConfig, make_sequence_actor)
        >>> features = ObservationFeatures({"state": (0, 3)}, keep=["state"])
        >>> sizes = SequenceConfig(history=2, horizon=8, width=8)
        >>> loss = MTDiff(make_sequence_actor("plan_diffusion", features, 2, 4, sizes))
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> batch = {"prompt": {"trajectory": steps(4)}, "history": steps(2), "future": steps(8)}
        >>> sorted(loss(TensorDict(batch, [6])).keys())
        ['bc', 'loss_actor']
    """

    data_keys = ("plan", "plan_mask")
    actor_network: PlanDiffusionActor

    def __init__(
        self,
        actor_network: PlanDiffusionActor,
        *,
        return_dropout: float = 0.25,
        reduction: str = "mean",
    ) -> None:
        if not isinstance(actor_network, PlanDiffusionActor):
            raise TypeError(
                f"MTDiff trains a PlanDiffusionActor, got {type(actor_network).__name__}"
            )
        guides = cast(PlanDenoiser, actor_network.module.score_network).guidance != 1.0
        if not 0.0 <= return_dropout < 1.0 or (guides and not return_dropout):
            raise ConfigError(
                f"loss.return_dropout is {return_dropout}: it must be below 1, and above 0 where "
                "network.sequence.guidance is not 1"
            )
        super().__init__(actor_network, reduction=reduction)
        self.return_dropout = return_dropout

    def _errors(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        actor = self.actor_network
        process = actor.module
        actions = data.get(self.tensor_keys.plan)
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
