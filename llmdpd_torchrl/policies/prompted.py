"""A policy that has been told its task: from plain observations to actions, on any environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from llmdpd_torchrl.prompts import embed_texts, make_text_encoder
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank, cut_trajectory
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from llmdpd_torchrl.policies.policy import LLMDPDPolicy

__all__ = ["PromptedPolicy"]


class PromptedPolicy(TensorDictModuleBase):
    """An :class:`~llmdpd_torchrl.policies.LLMDPDPolicy` with the prompts of one task.

    The prompts are encoded once, here: no transform is needed, and the environment may be any whose
    observations are laid out as those of the training. Usually made by
    :meth:`LLMDPDPolicy.prompt <llmdpd_torchrl.policies.LLMDPDPolicy.prompt>`.

    Args:
        policy: trained.
        text: the task in words, or its embedding ``[D]`` by the policy's text encoder.
        trajectories: demonstrations of the task, each a TensorDict ``[T]`` with ``observation``,
            ``action`` and ``("next", "reward")``: a rollout, or a trajectory of a dataset. A pooled
            policy averages what it makes of several; one that retrieves reads the nearest step of
            all.
        trained_task: whether the policy was trained on this task, and may go by what it knows.

    ``in_keys`` is ``["observation"]``, ``out_keys`` those of the policy's actor. Actions are drawn
    unless TorchRL's exploration type is ``DETERMINISTIC``, which is best where the policy follows a
    demonstration of a task that it was not trained on.

    Raises:
        ConfigError: if a prompt is missing that the policy can not do without, or one is given that
            it does not read; or if the policy reads sequences.
        PromptError: if a demonstration lacks an entry or has another width than the training's.

    Examples:
        >>> from llmdpd_torchrl.policies import LLMDPDPolicy
        >>> from llmdpd_torchrl.modules import NetworkConfig, make_networks
        >>> config = NetworkConfig(prompt="text", text_dim=6, hidden=[8])
        >>> policy = LLMDPDPolicy.from_networks(config, make_networks(config))
        >>> prompted = policy.prompt(text=torch.randn(6))
        >>> prompted(TensorDict({"observation": torch.randn(2, 39)}, [2]))["action"].shape
        torch.Size([2, 4])
    """

    embedding: Tensor | None

    def __init__(
        self,
        policy: LLMDPDPolicy,
        *,
        text: str | Tensor | None = None,
        trajectories: TensorDictBase | Sequence[TensorDictBase] = (),
        trained_task: bool = False,
    ) -> None:
        super().__init__()
        config = policy.config
        if config.reads_sequences:
            raise ConfigError(
                "this policy reads the episode's last steps, which a plain observation does not "
                "hold: use environment_transforms() with the environment"
            )
        if isinstance(trajectories, TensorDictBase):
            trajectories = [trajectories]
        if text is not None and not config.uses_text:
            raise ConfigError(f"this policy reads no text (prompt={config.prompt!r}): leave it out")
        if trajectories and not config.uses_trajectory:
            raise ConfigError(
                f"this policy reads no trajectory (prompt={config.prompt!r}): leave it out"
            )
        self.actor = policy.actor
        self.in_keys = ["observation"]
        self.out_keys = list(policy.actor.out_keys)
        table = None if text is None else _embedding(text, policy)
        bank = _bank(trajectories, policy) if trajectories else None
        tables = PromptTables(table, bank)
        self.retrieval = policy.retrieval(tables) if config.retrieves else None
        self.row = -1 if bank is None else 0
        self.is_open = trained_task or bank is None
        self.register_buffer("embedding", _embed(policy, tables), persistent=False)

    @dispatch(auto_batch_size=False)
    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Write the action for observations of any batch shape.

        Args:
            tensordict: holds ``observation`` [*, O].

        Keyword Args:
            generator (torch.Generator, optional): of what is drawn. Defaults to the global one.
        """
        observation = tensordict.get("observation")
        shape = observation.shape[:-1]
        state = TensorDict({"observation": observation}, batch_size=shape)
        if self.retrieval is not None:
            row = torch.full(shape, self.row, device=observation.device)
            gate = torch.full((*shape, 1), float(self.is_open), device=observation.device)
            state["prompt_context"] = self.retrieval(observation, row)
            state["prompt", "observation_gate"] = gate
        if self.embedding is not None:
            state["prompt_embedding"] = self.embedding.expand(*shape, -1)
        self.actor(state, generator=generator)
        for key in self.out_keys:
            tensordict.set(key, state.get(key))
        return tensordict


def _embedding(text: str | Tensor, policy: LLMDPDPolicy) -> Tensor:
    """One row, ``[1, D]``."""
    if isinstance(text, str):
        encoder = policy.info.get("text_encoder")
        if encoder is None:
            raise ConfigError(
                "this policy does not say which text encoder it was trained with: give the "
                "embedding instead of the text"
            )
        encoder = make_text_encoder(encoder)
        for key, value in (policy.info.get("text_encoder_identity") or {}).items():
            if encoder.identity.get(key) != value:
                raise PromptError(
                    f"the policy was trained with a text encoder whose {key} is {value!r}, here it "
                    f"is {encoder.identity.get(key)!r}: use the same, or give the embedding"
                )
        text = embed_texts([text], encoder)[0]
    if text.shape != (policy.config.text_dim,):
        raise PromptError(
            f"the text embedding has shape {list(text.shape)}, the policy was trained with "
            f"[{policy.config.text_dim}]: use the same text encoder"
        )
    return text.unsqueeze(0)


def _bank(trajectories: Sequence[TensorDictBase], policy: LLMDPDPolicy) -> TrajectoryPromptBank:
    config = policy.config
    widths = {"observation": config.observation_dim, "action": config.action_dim}
    widths["next reward"] = 1
    for number, trajectory in enumerate(trajectories):
        if trajectory.ndim != 1 or not len(trajectory):
            raise PromptError(
                f"demonstration {number} has batch size {list(trajectory.shape)}: give a "
                "TensorDict [T] of at least one step"
            )
        for name, width in widths.items():
            value = trajectory.get(tuple(name.split()), None)
            if value is None or value.shape[1:] != (width,):
                found = "nothing" if value is None else f"shape {list(value.shape)}"
                raise PromptError(
                    f"demonstration {number} has {found} as {name}: the policy was trained with "
                    f"[T, {width}]"
                )
    prompts = torch.stack([cut_trajectory(t, config.trajectory_length) for t in trajectories])
    nobody = torch.full((len(trajectories),), -1)
    bank = TrajectoryPromptBank(prompts, nobody, nobody.clone())
    return bank.concatenated() if config.retrieves and len(trajectories) > 1 else bank


@torch.no_grad()
def _embed(policy: LLMDPDPolicy, tables: PromptTables) -> Tensor | None:
    """z ``[d_z]``, the mean over the demonstrations; ``None`` if nothing is embedded."""
    filled = policy.filled(tables)
    if policy.encoder is None:
        return None
    table, bank = filled.text, filled.trajectories
    assert table is not None
    assert bank is not None
    has_text, has_trajectory = tables.text is not None, tables.trajectories is not None
    count = len(bank)
    device = next(policy.encoder.parameters()).device
    z = policy.encoder(
        table.to(device).expand(count, -1),
        bank.prompts.to(device),
        has_text=torch.full((count,), has_text, device=device),
        has_trajectory=torch.full((count,), has_trajectory, device=device),
    )
    return z.mean(0)
