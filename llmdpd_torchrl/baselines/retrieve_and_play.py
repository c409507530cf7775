"""Retrieve and play: a policy from one demonstration without any learning."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch

from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError


class RetrieveAndPlay(TensorDictModuleBase):
    """Replay the action of the demonstration's nearest step, corrected towards its path.

    At every step, the step of the demonstration with the nearest state is retrieved; its corrected
    action is the first suggestion of the context that
    :class:`~llmdpd_torchrl.prompts.retrieval.PromptRetrieval` makes, and is described there.
    Nothing is trained. Without an effector in the frame, the action is replayed as it is.

    Args:
        config: layout of the context; its frame is that of the environments.

    Examples:
        >>> from tensordict import TensorDict
        >>> policy = RetrieveAndPlay(NetworkConfig(prompt="trajectory"))
        >>> context = torch.randn(5, NetworkConfig().context_layout.width)
        >>> policy(TensorDict({"retrieved_context": context}, [5]))["action"].shape
        torch.Size([5, 4])
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        layout = config.context_layout
        moves = layout.parts["suggestions"].start
        action = layout.parts["frame_0"].start  # of which the suggestion corrects the movement
        rest = range(action + layout.moves, action + config.action_dim)
        self.columns = [*range(moves, moves + layout.moves), *rest]
        self.in_keys, self.out_keys = ["retrieved_context"], ["action"]

    @dispatch(auto_batch_size=False)
    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the action. It is not random: ``generator`` is accepted as by any policy."""
        return tensordict.set("action", tensordict.get("retrieved_context")[..., self.columns])


def retrieve_and_play_policy(config: NetworkConfig | None = None) -> LLMDPDPolicy:
    """Make :class:`RetrieveAndPlay` a policy, to be prompted and evaluated like a trained one.

    Args:
        config: configuration for the family of environments, with a trajectory prompt that is
            retrieved from. Default: Meta-World's.

    Raises:
        ConfigError: if it has no such prompt.

    Examples:
        >>> retrieve_and_play_policy().config.prompt
        'trajectory'
    """
    config = config or NetworkConfig(prompt="trajectory", trajectory_length=128)
    if not config.retrieves:
        raise ConfigError("retrieve and play needs a trajectory prompt that is retrieved from")
    return LLMDPDPolicy(config, RetrieveAndPlay(config), None)
