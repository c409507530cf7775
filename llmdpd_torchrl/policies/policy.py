"""A trained policy as two files: safetensors for the weights, JSON for everything else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDictBase

from llmdpd_torchrl import __version__
from llmdpd_torchrl.modules.actors.diffusion import DiffusionActor
from llmdpd_torchrl.modules.build import Networks, check_state, make_networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.modules.prompt_encoder import PromptEncoder, PromptNetwork
from llmdpd_torchrl.policies.card import write_card
from llmdpd_torchrl.policies.hub import download_policy, looks_like_hub_id, upload_policy
from llmdpd_torchrl.policies.prompted import PromptedPolicy
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError, first_line
from llmdpd_torchrl.utils.files import (
    check_kinds,
    file_sha256,
    read_document,
    write_json,
    write_tensors,
)

__all__ = ["LLMDPDPolicy"]

_FORMAT = "llmdpd-policy"
_FORMAT_VERSION = 4  # 3: no digest; 2: the frame was Meta-World's; 1: no pull towards the goal
#: What may lie beside a policy, such as its card and videos; it is not read.
_KINDS = (
    ".csv", ".html", ".jpg", ".json", ".md", ".mp4", ".png", ".safetensors", ".txt", ".yaml",
)  # fmt: skip
#: Put there by Git, the Hub's client, and locks.
_IGNORED = (".cache", ".git", ".gitattributes", ".gitignore", ".lock", "LICENSE")
_MALFORMED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class LLMDPDPolicy:
    """Actor and prompt encoder of a trained policy, with what is needed to rebuild and use them.

    Args:
        config: the networks' structure.
        actor: the diffusion actor; any module from its inputs to an action can act in its place,
            but not be saved.
        encoder: the prompt encoder, ``None`` for a policy without prompts.
        info: anything JSON can hold that belongs to the policy. ``text_encoder``, what
            :func:`~llmdpd_torchrl.prompts.make_text_encoder` takes, is read where a task is told in
            words, and ``text_encoder_identity`` must then be its ``identity``. The card shows
            ``trained_tasks``, ``updates`` and ``data_hash``.

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

        See :class:`~llmdpd_torchrl.policies.PromptedPolicy`, also for what is raised.
        """
        return PromptedPolicy(self, text=text, trajectories=trajectories, trained_task=trained_task)

    def prompt_network(self, tables: PromptTables) -> PromptNetwork | None:
        """The encoder on tables of prompts; ``None`` for a policy without encoder."""
        tables = self.filled(tables)
        return None if self.encoder is None else PromptNetwork(self.encoder, tables)

    def filled(self, tables: PromptTables) -> PromptTables:
        """The tables, checked, with an empty one in place of each that is missing."""
        self.check_tables(tables)
        config = self.config
        return tables.filled(
            config.text_dim, config.trajectory_length, config.observation_dim, config.action_dim
        )

    def retrieval(self, tables: PromptTables) -> PromptRetrieval:
        """What a policy that retrieves reads trajectory prompts with."""
        config, bank = self.config, self.filled(tables).trajectories
        assert bank is not None
        return PromptRetrieval(
            bank, config.frame, config.observation_fields, lookaheads=config.lookaheads
        )

    def check_tables(self, tables: PromptTables) -> None:
        """Check that all prompts are there that the policy cannot do without.

        Raises:
            ConfigError: if prompts are missing, or have another length.
        """
        config, bank = self.config, tables.trajectories
        if config.uses_text and tables.text is None and not config.text_dropout:
            raise ConfigError("this policy reads text prompts: give PromptTables(text=...)")
        if config.uses_trajectory and bank is None and not config.trajectory_dropout:
            raise ConfigError(
                "this policy reads trajectory prompts: give PromptTables(trajectories=...)"
            )
        if bank is None or not config.uses_trajectory:
            return
        # Concatenated demonstrations can only be retrieved from.
        if bank.is_concatenated and not config.retrieves:
            raise ConfigError(
                "this policy pools its trajectory prompt and cannot read concatenated "
                "demonstrations: give one per task (evaluation.demonstrations=1)"
            )
        rest = bank.length % config.trajectory_length
        if rest or (bank.length > config.trajectory_length and not bank.is_concatenated):
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
        """Write ``policy.safetensors``, then ``policy.json``, each whole or not at all.

        ``policy.json`` holds the structure of the networks, the layout of the observation, ``info``
        with the task table and the text encoder, versions, and the SHA-256 of the weights, among
        which is the normalisation. ``README.md``, a card, is for people.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "policy.safetensors"
        write_tensors(weights, self._modules().state_dict())
        packages = ("torch", "torchrl", "tensordict", "safetensors")
        versions = {name: metadata.version(name) for name in packages}
        fields = {name: list(ends) for name, ends in self.config.observation_fields.items()}
        description = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "network": asdict(self.config),
            "observation_layout": {"size": self.config.observation_dim, "fields": fields},
            "info": self.info,
            "versions": {"llmdpd_torchrl": __version__, **versions},
            "weights": {"file": weights.name, "sha256": file_sha256(weights)},
        }
        write_json(folder / "policy.json", description)
        write_card(folder, self.config, description)

    def push_to_hub(
        self, repository: str, folder: str | os.PathLike[str], *, private: bool = True
    ) -> str:
        """Save into ``folder``, publish it on the Hub as ``"owner/name"``, and return its address.

        Raises:
            ConfigError: if the Hub's client is not installed (extra ``hub``).
            DataError: if the Hub refuses, or can not be reached.
        """
        self.save_pretrained(folder)
        return upload_policy(Path(folder), repository, private=private)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype | None = None,
        observation_layout: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> LLMDPDPolicy:
        """Read what :meth:`save_pretrained` wrote. Nothing is unpickled.

        Args:
            folder: of the policy; or, if there is no such folder, ``"owner/name"`` on the Hub.
            device: where it shall act.
            dtype: of its floating-point numbers; default: float32.
            observation_layout: of what it shall act on, as in a dataset's manifest; see
                :meth:`check_layout`.
            revision: of the repository on the Hub.

        Raises:
            DamagedError: if the weights are not what was saved, or the folder holds a file of a
                kind that does not belong there, a pickle for example; then nothing is read.
            DataError: if a file is missing, malformed, or does not fit the other, or the layout is
                another.
        """
        if looks_like_hub_id(os.fspath(folder)):
            folder = download_policy(os.fspath(folder), revision)
        path = Path(folder) / "policy.json"
        if not path.is_file():
            raise DataError(f"no policy in {folder}: policy.json is missing; train one first")
        check_kinds(folder, _KINDS, links=True, ignored=_IGNORED)
        description = read_document(path, _FORMAT, _FORMAT_VERSION)
        try:
            config = NetworkConfig(**description["network"])
            networks = make_networks(config)
            digest = description["weights"]["sha256"]
            policy = cls.from_networks(config, networks, dict(description["info"]))
        except ConfigError as error:
            raise DataError(f"{path}: {error}") from None
        except _MALFORMED as error:
            raise DataError(
                f"{path}: the policy's description is wrong ({type(error).__name__}: "
                f"{first_line(error)}); save it again"
            ) from None
        if observation_layout is not None:
            policy.check_layout(observation_layout)
        weights = Path(folder) / "policy.safetensors"
        try:
            if file_sha256(weights) != digest:
                raise DamagedError(
                    f"{weights}: damaged (its SHA-256 is not the one in {path.name}); save it again"
                )
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{weights}: missing or damaged ({error}); save it again") from None
        modules = policy._modules()
        check_state(state, modules.state_dict(), str(weights), path.name)
        modules.load_state_dict(state)
        modules.to(device=device, dtype=dtype).eval()
        return policy

    def check_layout(self, layout: Mapping[str, Any]) -> None:
        """Refuse observations that are laid out otherwise than those that it was trained on.

        Args:
            layout: with ``size`` and ``fields``, half-open index ranges by name, as in a manifest.

        Raises:
            DataError: naming what differs.
        """
        size, fields = self.config.observation_dim, self.config.observation_fields
        if layout["size"] != size:
            raise DataError(
                f"the policy was trained on observations of {size} entries, these have "
                f"{layout['size']}: use the environment that it was trained for"
            )
        for name in sorted({*fields, *layout["fields"]}):
            ours, theirs = (list(ends.get(name, ())) for ends in (fields, layout["fields"]))
            if ours != theirs:
                raise DataError(
                    f"the policy was trained on observations with {name} at {ours}, these have it "
                    f"at {theirs}: use the environment that it was trained for"
                )
