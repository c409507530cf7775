"""Retrieve and play: policies from one demonstration without any learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.anchored_replay import AnchoredReplay
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.transforms.replay import ReplayTransform
from llmdpd_torchrl.utils.errors import ConfigError


class _Play(TensorDictModuleBase):
    """Write columns of an entry as the action."""

    def __init__(self, key: str, columns: Sequence[int]) -> None:
        super().__init__()
        self.columns = list(columns)
        self.in_keys, self.out_keys = [key], ["action"]

    @dispatch(auto_batch_size=False)
    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the action. It is not random: ``generator`` is accepted as by any policy."""
        return tensordict.set("action", tensordict.get(self.in_keys[0])[..., self.columns])


class RetrieveAndPlay(_Play):
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
        layout = config.context_layout
        moves = layout.parts["suggestions"].start
        action = layout.parts["frame_0"].start  # of which the suggestion corrects the movement
        rest = range(action + layout.moves, action + config.action_dim)
        super().__init__("retrieved_context", [*range(moves, moves + layout.moves), *rest])


class ReplayPolicy(LLMDPDPolicy):
    """A policy that plays the actions of its prompts, whether they are the environment's or not.

    It knows no better: of states only, they are finite differences.
    """

    recovers = False

    def make_retrieval(self, tables: PromptTables) -> PromptRetrieval:
        """The retrieval from the trajectory prompts in ``tables``, all actions taken as usable."""
        bank = self.filled(tables).trajectories
        assert bank is not None
        prompts = bank.prompts.exclude("has_action")
        bank = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
        return super().make_retrieval(PromptTables(tables.text, bank))


class AnchoredReplayPolicy(LLMDPDPolicy):
    """A policy that plays :class:`~llmdpd_torchrl.prompts.anchored_replay.AnchoredReplay`.

    It remembers how far it has come in an episode: it acts in an environment with its transforms.
    """

    recovers = False

    def make_context_transform(self, tables: PromptTables, *, successors: bool = True) -> Transform:
        """The transform that plays the trajectory prompts in ``tables``."""
        bank = self.filled(tables).trajectories
        assert bank is not None
        replay = AnchoredReplay(bank, self.config.observation_fields)
        return ReplayTransform(replay, self.config.action_dim, bank.length)

    def prompt(self, **prompts: object) -> NoReturn:
        """Refuse: plain observations do not tell how far the episode has come."""
        raise ConfigError(
            "this policy remembers its progress, which a plain observation does not hold: use "
            "environment_transforms() with the environment"
        )


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
    return ReplayPolicy(config, RetrieveAndPlay(config), None)


def retrieve_and_play_plus_policy(config: NetworkConfig | None = None) -> LLMDPDPolicy:
    """Make the strongest replay written by hand a policy, to be evaluated like a trained one.

    Args:
        config: configuration for Meta-World, with a trajectory prompt that is retrieved from.

    Raises:
        ConfigError: if it has no such prompt.

    Examples:
        >>> retrieve_and_play_plus_policy().in_keys
        ['replayed_action']
    """
    config = config or NetworkConfig(prompt="trajectory", trajectory_length=128)
    if not config.retrieves:
        raise ConfigError("retrieve and play+ needs a trajectory prompt that is retrieved from")
    return AnchoredReplayPolicy(config, _Play("replayed_action", range(config.action_dim)), None)
