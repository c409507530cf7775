"""A decision transformer with a trajectory prompt before the episode's own steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import DecisionTransformer, SafeModule

from llmdpd_torchrl.modules.conditioning import ObservationFeatures
from llmdpd_torchrl.prompts.language_model import quiet_transformers
from llmdpd_torchrl.utils.errors import import_optional

_HISTORY = ("observation", "action", "return_to_go", "mask")


class PromptDecisionTransformer(DecisionTransformer):
    """TorchRL's decision transformer with a prompt before the history, and with a mask.

    Every step is three tokens: return-to-go, observation, action. Those of the prompt have
    embeddings of their own and come before those of the history; attention is causal, and an action
    is read off each of the history's observation tokens (Xu et al. 2022, section 4).

    Args:
        features: features of observations; used as they are, not trained.
        action_dim, prompt_steps, history_steps: A, L and H.
        width, layers, heads: sizes of GPT-2; its inner layer is four times as wide.
        dropout: dropout of embeddings, attention and residuals in training.
        return_scale: divisor of returns.

    Shapes: of the prompt [*, L, O], [*, L, A], [*, L, 1] and the mask [*, L], of the history the
    same with H, to actions [*, H, A] in (-1, 1).
    """

    def __init__(
        self,
        features: ObservationFeatures,
        action_dim: int,
        prompt_steps: int,
        history_steps: int,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 1,
        dropout: float = 0.0,
        return_scale: float = 1000.0,
    ) -> None:
        import_optional("transformers", "a decision transformer", "llm")
        sizes = self.DTConfig(
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=4 * width,
            n_positions=3 * (prompt_steps + history_steps),
            resid_pdrop=dropout,
            attn_pdrop=dropout,
        )
        with quiet_transformers():
            super().__init__(features.out_features, action_dim, sizes)
        # TorchRL leaves this one at transformers' 0.1.
        self.transformer.drop.p = dropout
        self.observation_module = features
        self.prompt_steps = prompt_steps
        self.return_scale = return_scale
        self.embed_prompt_return = nn.Linear(1, width)
        self.embed_prompt_state = nn.Linear(features.out_features, width)
        self.embed_prompt_action = nn.Linear(action_dim, width)
        self.head = nn.Linear(width, action_dim)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Actions for every step of the history."""
        shape = inputs[-1].shape[:-1]
        inputs = tuple(value.reshape(-1, *value.shape[len(shape) :]) for value in inputs)
        prompt, history = inputs[:4], inputs[4:]
        tokens = torch.cat(
            [
                self._tokens(
                    prompt,
                    self.embed_prompt_return,
                    self.embed_prompt_state,
                    self.embed_prompt_action,
                ),
                self._tokens(history, self.embed_return, self.embed_state, self.embed_action),
            ],
            dim=-2,
        )
        mask = torch.cat([prompt[3], history[3]], dim=-1).repeat_interleave(3, dim=-1)
        output = self.transformer(
            inputs_embeds=self.embed_ln(tokens), attention_mask=mask.long(), use_cache=False
        )["last_hidden_state"]
        states = output[:, 3 * self.prompt_steps + 1 :: 3]
        actions = self.head(states).tanh()
        return actions.reshape(*shape, *actions.shape[1:])

    def _tokens(
        self, steps: Sequence[Tensor], to_go: nn.Module, state: nn.Module, action: nn.Module
    ) -> Tensor:
        """Three tokens a step, ``[B, 3 n, width]``."""
        observations, actions, returns, _ = steps
        tokens = torch.stack(
            [
                to_go(returns / self.return_scale),
                state(self.observation_module(observations)),
                action(actions),
            ],
            dim=-2,
        )
        return tokens.flatten(-3, -2)


class DecisionTransformerActor(SafeModule):
    """A :class:`PromptDecisionTransformer` that takes the action of the history's last step.

    Acting is without dropout, in whichever mode the module is: only :meth:`actions`, which losses
    call, has it in training.

    It reads what :class:`~llmdpd_torchrl.transforms.HistoryTransform` and
    :class:`~llmdpd_torchrl.transforms.TrajectoryPromptTransform` in mode ``"tensor"`` write.

    Args:
        network: maps prompt and history to the actions of the history.

    Examples:
        >>> from tensordict import TensorDict
        >>> from llmdpd_torchrl.modules import NetworkConfig, SequenceConfig, make_networks
        >>> config = NetworkConfig(
        ...     prompt="trajectory", conditioning="sequence", actor="decision_transformer",
        ...     observation_fields={"state": (0, 3)}, observation_keep=["state"], action_dim=2,
        ...     trajectory_length=4, sequence=SequenceConfig(history=5, width=8, layers=1))
        >>> actor = make_networks(config).actor
        >>> def steps(n):
        ...     return {"observation": torch.randn(6, n, 3), "action": torch.rand(6, n, 2),
        ...             "return_to_go": torch.rand(6, n, 1), "mask": torch.ones(6, n).bool()}
        >>> state = TensorDict({"prompt": {"trajectory": steps(4)}, "history": steps(5)}, [6])
        >>> actor(state)["action"].shape
        torch.Size([6, 2])
    """

    module: PromptDecisionTransformer

    def __init__(self, network: PromptDecisionTransformer) -> None:
        keys: list[NestedKey] = [("prompt", "trajectory", name) for name in _HISTORY]
        keys += [("history", name) for name in _HISTORY]
        super().__init__(network, keys, ["action"])

    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the action. ``generator`` is not used; callers pass it to any policy."""
        trains = self.training
        self.eval()  # evaluations during a training act with the modules that are being trained
        try:
            actions = self.actions(tensordict)
        finally:
            self.train(trains)
        return tensordict.set(self.out_keys[0], actions[..., -1, :])

    def actions(self, tensordict: TensorDictBase) -> Tensor:
        """The action at every step of the history, [*, H, A]; with dropout while training."""
        return self.module(*(tensordict.get(key) for key in self.in_keys))
