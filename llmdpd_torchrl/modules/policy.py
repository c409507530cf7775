"""A trained policy as two files: safetensors for the weights, JSON for everything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tensordict import TensorDictBase

from llmdpd_torchrl.errors import ConfigError, DataError
from llmdpd_torchrl.files import read_document, write_atomic, write_json
from llmdpd_torchrl.modules.actor import DiffusionActor
from llmdpd_torchrl.modules.networks import NetworkConfig, Networks, make_networks
from llmdpd_torchrl.modules.prompt_encoder import PromptEncoder, PromptNetwork
from llmdpd_torchrl.modules.prompted import PromptedPolicy
from llmdpd_torchrl.modules.state import check_state
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

__all__ = ["LLMDPDPolicy"]

_FORMAT = "llmdpd-policy"
_FORMAT_VERSION = 3  # 2: the frame was Meta-World's; 1: no pull towards the goal


class LLMDPDPolicy:
    """Actor and prompt encoder of a trained policy, with what is needed to rebuild and use them.

    Args:
        config: the networks' structure.
        actor: the diffusion actor; any module from its inputs to an action can act in its place,
            but not be saved.
        encoder: the prompt encoder, ``None`` for a policy without prompts.
        info: anything JSON can hold that belongs to the policy. ``trained_task_ids``, a list, is
            read where the actor retrieves.

    Examples:
        >>> import tempfile
        >>> networks = make_networks(NetworkConfig(prompt="none", hidden=[8]))
        >>> policy = LLMDPDPolicy.from_networks(NetworkConfig(prompt="none", hidden=[8]), networks)
        >>> folder = tempfile.mkdtemp()
        >>> policy.save_pretrained(folder)
        >>> LLMDPDPolicy.from_pretrained(folder).config.hidden
        [8]
    """

    def __init__(
        self,
        config: NetworkConfig,
        actor: DiffusionActor,
        encoder: PromptEncoder | None,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.actor = actor
        self.encoder = encoder
        self.info = info or {}

    @classmethod
    def from_networks(
        cls, config: NetworkConfig, networks: Networks, info: dict[str, Any] | None = None
    ) -> LLMDPDPolicy:
        """The policy of networks that were trained; the critics are left behind."""
        return cls(config, networks.actor, networks.encoder, info)

    def prompt(
        self,
        *,
        text: str | torch.Tensor | None = None,
        trajectories: TensorDictBase | Sequence[TensorDictBase] = (),
        trained_task: bool = False,
    ) -> PromptedPolicy:
        """Tell the policy a task: the result acts on plain observations, without fine-tuning.

        Args:
            text: the task in words, or its embedding.
            trajectories: demonstrations, from an expert, a dataset or the user.
            trained_task: whether it was trained on this very task.

        See :class:`~llmdpd_torchrl.modules.PromptedPolicy`, also for what is raised.
        """
        return PromptedPolicy(self, text=text, trajectories=trajectories, trained_task=trained_task)

    def prompt_network(
        self, text_table: torch.Tensor | None, bank: TrajectoryPromptBank | None
    ) -> PromptNetwork | None:
        """The encoder on tables of prompts; those that the policy does not read are left out."""
        text_table, bank = self.tables(text_table, bank)
        if self.encoder is None:
            return None
        return PromptNetwork(
            self.encoder,
            text_table=None if self.encoder.text is None else text_table,
            bank=None if self.encoder.trajectory is None else bank,
        )

    def tables(
        self, text_table: torch.Tensor | None, bank: TrajectoryPromptBank | None
    ) -> tuple[torch.Tensor, TrajectoryPromptBank]:
        """The tables, checked, and empty ones in the place of those that are not given."""
        self.check_tables(text_table, bank)
        config = self.config
        if text_table is None:
            text_table = torch.zeros(1, config.text_dim)
        if bank is None:
            bank = TrajectoryPromptBank.empty(
                config.trajectory_length, config.observation_dim, config.action_dim
            )
        return text_table, bank

    def retrieval(self, bank: TrajectoryPromptBank) -> PromptRetrieval:
        """What a policy that retrieves reads the prompts in ``bank`` with."""
        config = self.config
        return PromptRetrieval(
            bank, config.frame, config.observation_fields, lookaheads=config.lookaheads
        )

    def check_tables(
        self, text_table: torch.Tensor | None, bank: TrajectoryPromptBank | None
    ) -> None:
        """Check that the tables of all prompts are there that the policy can not do without.

        Raises:
            ConfigError: if one is missing, or the prompts have another length.
        """
        config = self.config
        if config.uses_text and text_table is None and not config.text_dropout:
            raise ConfigError("this policy reads text prompts: give a text_table")
        if config.uses_trajectory and bank is None and not config.trajectory_dropout:
            raise ConfigError("this policy reads trajectory prompts: give a bank")
        if bank is None or not config.uses_trajectory:
            return
        # Several demonstrations may be joined where they are only retrieved from.
        is_joined = "start" in bank.prompts.keys()  # noqa: SIM118 (no dictionary)
        if is_joined and not config.retrieves:
            raise ConfigError(
                "this policy pools its trajectory prompt and can not read joined demonstrations: "
                "show one (evaluation.demonstrations=1)"
            )
        rest = bank.length % config.trajectory_length
        if rest or (bank.length > config.trajectory_length and not is_joined):
            raise ConfigError(
                f"the prompts have {bank.length} steps, this policy was trained with "
                f"{config.trajectory_length}: cut them to that length"
            )

    def _modules(self) -> torch.nn.ModuleDict:
        """What acting needs, and a saved policy holds, under fixed names."""
        modules: dict[str, torch.nn.Module] = {"actor": self.actor}
        if self.encoder is not None:
            modules["encoder"] = self.encoder
        return torch.nn.ModuleDict(modules)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``policy.safetensors``, then ``policy.json``, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self._modules().state_dict().items()
            if isinstance(value, torch.Tensor)
        }
        write_atomic(folder / "policy.safetensors", lambda path: save_file(state, path))
        description = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "network": asdict(self.config),
            "info": self.info,
        }
        write_json(folder / "policy.json", description)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> LLMDPDPolicy:
        """Read what :meth:`save_pretrained` wrote. Nothing is unpickled.

        Raises:
            DataError: if a file is missing, damaged, or does not fit the other.
        """
        path = Path(folder) / "policy.json"
        if not path.is_file():
            raise DataError(f"no policy in {folder}: policy.json is missing; train one first")
        description = read_document(path, _FORMAT, _FORMAT_VERSION)
        try:
            config = NetworkConfig(**description["network"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: the network's description is wrong ({error})") from None
        networks = make_networks(config)
        weights = Path(folder) / "policy.safetensors"
        try:
            state = load_file(weights, device=str(device))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{weights}: missing or damaged ({error}); save it again") from None
        policy = cls.from_networks(config, networks, description.get("info"))
        modules = policy._modules().to(device)
        check_state(state, modules.state_dict(), str(weights), path.name)
        modules.load_state_dict(state)
        modules.eval()
        return policy
