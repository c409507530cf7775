"""The prompt embedding z of an episode, encoded once at its reset."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.data import TensorSpec, Unbounded

from llmdpd_torchrl.transforms.base import PromptTransform

__all__ = ["PromptEmbeddingTransform"]


class PromptEmbeddingTransform(PromptTransform):
    """Run a prompt network once per reset, without gradient, and keep z for the whole episode.

    For environments only: on a replay buffer a trainable encoder would be stale and its gradient
    lost, so that the loss owns it there.

    Args:
        prompt_network: maps what the prompt transforms write to ``prompt_embedding``; its
            ``in_keys`` and ``out_keys`` become the transform's.
        embedding_dim: width of z.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> head = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["prompt_embedding"])
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), PromptEmbeddingTransform(head, 2))
        >>> env.rollout(2)["prompt_embedding"].shape
        torch.Size([2, 2])
    """

    def __init__(self, prompt_network: TensorDictModuleBase, embedding_dim: int) -> None:
        super().__init__(
            in_keys=list(prompt_network.in_keys), out_keys=list(prompt_network.out_keys)
        )
        self.embedding_dim = embedding_dim
        # In a tuple, so that the network is not registered: appending a transform must neither put
        # the network into eval mode nor its weights into the environment's state_dict.
        self._network = (prompt_network,)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse to run on a replay buffer."""
        raise RuntimeError(
            "PromptEmbeddingTransform is for environments: on a replay buffer use the prompt "
            "transforms in index mode and give the prompt network to the loss"
        )

    @torch.no_grad()
    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        output = self._network[0](tensordict.select(*self.in_keys))
        return {self.out_keys[0]: output.get(self.out_keys[0])}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Unbounded((*shape, self.embedding_dim), dtype=torch.float32)}
