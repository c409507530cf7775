"""A trained policy: a module from observations, and the prompts of a task, to actions."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.modules.build import Networks, make_networks
from llmdpd_torchrl.modules.conditioning import PromptEncoder, PromptNetwork
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.modules.known_texts import KnownTexts
from llmdpd_torchrl.policies import pretrained
from llmdpd_torchrl.policies.acting import GATE, Acting, plain_actor, write_action
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.transforms.retrieved_context import RetrievedContextTransform
from llmdpd_torchrl.utils.errors import ConfigError, PromptError, notice

#: Smaller shares of a task in a text are not named.
_LEAST_SHARE = 0.01
_FLOAT32 = torch.zeros(0, dtype=torch.float32)
#: What a :class:`~llmdpd_torchrl.transforms.recovery.RecoveryTransform` writes, if there is one.
RECOVERY_KEYS = ("replayed_action", "is_recovering")
Demonstrations: TypeAlias = Sequence[TensorDictBase]


class LLMDPDPolicy(TensorDictModuleBase):
    """Actor and prompt encoder of a trained policy, with what is needed to rebuild and use them.

    What :meth:`prompt` returns acts on plain observations, ``in_keys`` ``["observation"]``, in any
    environment whose observations are laid out as those of the training. Without a prompt it reads
    what :func:`~llmdpd_torchrl.policies.transforms.environment_transforms` writes. Observations of
    any number type and device are cast to the policy's; actions return to where those came from.

    How it acts is part of the policy: where it follows a demonstration, that is where it retrieves
    from one and the observation gate is shut, actions are deterministic; elsewhere a diffusion
    samples them, or takes the best of several samples by its critics (``config.candidates``), and
    any other actor takes its mean. TorchRL's ``set_exploration_type`` overrides this.

    Args:
        config: structure of the networks.
        actor: the diffusion actor, one whose samples are ranked by critics, or any module from its
            inputs to an action.
        encoder: the prompt encoder, ``None`` for a policy without prompts.
        info: anything JSON can hold that belongs to the policy. ``text_encoder``, an argument of
            :func:`~llmdpd_torchrl.prompts.make_text_encoder`, is read where it is prompted with
            words, and ``text_encoder_identity`` must then be its ``identity``. With ``hide_goal``
            it sees the goal entries of every observation as zero. The card shows ``name``,
            ``license``, ``algorithm``, ``trained_tasks``, ``updates``, ``seed``, ``data``,
            ``data_hash``, ``benchmark`` and, of it, ``results``: a list of the arguments of
            :class:`~llmdpd_torchrl.policies.card.CardResult`.

    Attributes:
        retrieval: what a prompted policy retrieves from, if it does.
        library: by id of a trained task, a demonstration of it, for a text that comes without one;
            saved with the policy.
        embedding: ``[d_z]``, the prompt embedding of a prompted policy with an encoder.
        is_open: whether the observation gate of a prompted policy is open.

    Examples:
        >>> import tempfile
        >>> config = NetworkConfig(prompt="text", text_dim=6, hidden=[8])
        >>> policy = LLMDPDPolicy.from_networks(config, make_networks(config))
        >>> folder = tempfile.mkdtemp()
        >>> policy.save_pretrained(folder)
        >>> prompted = LLMDPDPolicy.from_pretrained(folder).prompt(text=torch.randn(6))
        >>> prompted(TensorDict({"observation": torch.randn(2, 39)}, [2]))["action"].shape
        torch.Size([2, 4])
    """

    embedding: Tensor | None
    #: Whether a replay takes over in environments where it stands still.
    recovers = True

    def __init__(
        self,
        config: NetworkConfig,
        actor: TensorDictModuleBase,
        encoder: PromptEncoder | None,
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.actor = actor
        self.encoder = encoder
        self.info = info or {}
        self.in_keys = list(actor.in_keys)
        self.out_keys = list(plain_actor(actor).out_keys)
        self.is_prompted = False
        self.is_open = True
        self.row = -1
        self.retrieval: PromptRetrieval | None = None
        self.library: Mapping[int, TensorDictBase] = {}
        self.register_buffer("embedding", None, persistent=False)

    @classmethod
    def from_networks(
        cls, config: NetworkConfig, networks: Networks, info: dict[str, Any] | None = None
    ) -> LLMDPDPolicy:
        """The policy of trained networks, with their critics where it acts by them."""
        return cls(config, networks.acting, networks.encoder, info)

    @dispatch(auto_batch_size=False)
    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        generator: torch.Generator | None = None,
        acting: Acting | None = None,
    ) -> TensorDictBase:
        """Write the action for observations of any batch shape.

        Args:
            tensordict: holds ``in_keys``; ``observation`` is ``[*, O]``.

        Keyword Args:
            generator (torch.Generator, optional): of sampled actions. Defaults to the global one.
            acting (str, optional): how actions are chosen. Defaults to TorchRL's exploration type
                and, where none is set, to the policy's own way.
        """
        state = self._prompted_state(tensordict) if self.is_prompted else self._state(tensordict)
        diffuses = self.config.diffuses
        write_action(self.actor, state, diffuses=diffuses, acting=acting, generator=generator)
        home = tensordict.get(self.in_keys[0]).device
        for key in self.out_keys:
            tensordict.set(key, state.get(key).to(home))
        replayed, is_recovering = (tensordict.get(key, None) for key in RECOVERY_KEYS)
        if is_recovering is not None:
            tensordict["action"] = torch.where(is_recovering, replayed, tensordict["action"])
        return tensordict

    def _state(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The actor's inputs as the transforms wrote them, cast."""
        gate = tensordict.get(GATE, None) if GATE in self.in_keys else None
        shape = tensordict.batch_size if gate is None else gate.shape[:-1]
        state = TensorDict({}, batch_size=shape)
        for key in self.in_keys:
            state.set(key, self._read(tensordict, key))
        return state

    def _prompted_state(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The actor's inputs from plain observations and the prompt that is held here."""
        observation = self._read(tensordict, "observation")
        shape = observation.shape[:-1]
        state = TensorDict({"observation": observation}, batch_size=shape)
        if self.retrieval is not None:
            row = torch.full(shape, self.row, device=observation.device)
            state["retrieved_context"] = self.retrieval(observation, row)
            state[GATE] = observation.new_full((*shape, 1), float(self.is_open))
        if self.embedding is not None:
            state["prompt_embedding"] = self.embedding.expand(*shape, -1)
        return state

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """An input on the policy's device, numbers cast to its floating-point type."""
        value = tensordict.get(key, None)
        if value is None:
            raise PromptError(
                f"the policy reads {key!r}, which is not there: call what policy.prompt() returns, "
                "or add environment_transforms() to the environment"
            )
        reference = self._reference()
        is_cast = value.is_floating_point() or key == "observation"
        value = value.to(reference if is_cast else reference.device)
        if key == "observation" and self._goal_columns is not None:
            value = value.clone()
            value[..., self._goal_columns] = 0.0
        return value

    @property
    def _goal_columns(self) -> slice | None:
        """Columns of the observation that the policy must not see."""
        columns = self.config.observation_fields.get("goal_position")
        return slice(*columns) if columns and self.info.get("hide_goal") else None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._reference().device

    def _reference(self) -> Tensor:
        """A tensor on the policy's device and of its floating-point type."""
        held = itertools.chain(self.parameters(), self.buffers())
        return next((t for t in held if t.is_floating_point()), _FLOAT32)

    def prompt(
        self,
        *,
        text: str | Tensor | None = None,
        trajectories: TensorDictBase | Demonstrations = (),
        trained_task: bool = False,
    ) -> LLMDPDPolicy:
        """The policy, prompted with one task: it acts on plain observations, without fine-tuning.

        Prompts are encoded once, here; the result shares its networks with this policy. With a text
        alone, a policy that retrieves and has a ``library`` follows the demonstration of the task
        whose text is nearest.

        Args:
            text: the task in words, or its embedding ``[D]`` by the policy's text encoder.
            trajectories: demonstrations of the task, each a TensorDict ``[T]`` with
                ``observation``, ``action`` and ``("next", "reward")``: a rollout of one episode, or
                a trajectory of a dataset. A pooled policy averages the embeddings of several, one
                that retrieves reads the nearest step of all.
            trained_task: whether the policy was trained on this very task, so that it may use the
                state and the task's embedding besides the demonstration.

        Raises:
            ConfigError: if a prompt is missing, or not read, or the policy reads sequences.
            PromptError: if a demonstration is not like the training's: see ``from_rollouts``.
        """
        config = self.config
        if config.reads_sequences:
            raise ConfigError(
                "this policy reads the last steps of the episode, which a plain observation does "
                "not hold: use environment_transforms() with the environment"
            )
        if isinstance(trajectories, TensorDictBase):
            trajectories = [trajectories]
        if text is not None and config.uses_text:  # read below, and compared
            (text,) = pretrained.embed_prompts([text], self.info, config.text_dim)
        if text is not None and not len(trajectories) and config.retrieves and self.library:
            trajectories = [self.library[task] for task in self.nearest_tasks(text)[:1]]
        texts = {} if text is None else {0: text}
        tables = self.make_tables(texts, {-1: trajectories} if len(trajectories) else {})
        bank = tables.follow(self._reference()).trajectories
        prompted = type(self)(config, self.actor, self.encoder, self.info)
        prompted.training = self.training
        prompted.is_prompted = True
        prompted.in_keys = ["observation"]
        prompted.row = -1 if bank is None else 0
        prompted.is_open = trained_task or bank is None
        prompted.embedding = self._embed_prompt(tables)
        prompted.retrieval = self.make_retrieval(tables) if config.retrieves else None
        compares = prompted.is_open and self._known is not None
        if text is not None and compares and not self.recognise(text):
            notice("the text names no task of the training: the policy acts as without one")
        return prompted

    @property
    def _known(self) -> KnownTexts | None:
        head = None if self.encoder is None else self.encoder.text
        return None if head is None else head.known

    @torch.no_grad()
    def nearest_tasks(self, text: str | Tensor) -> list[int]:
        """The ids of the trained tasks by how near their texts are to another, the nearest first.

        Args:
            text: words, or their embedding ``[D]``.

        Raises:
            ConfigError: if the policy was trained without ``network.text_mixture``.
        """
        known, row = self._compare(text)
        order = known.similarity(row)[0].argsort(descending=True).tolist()
        return [self.config.trained_task_ids[place] for place in order]

    @torch.no_grad()
    def recognise(self, text: str | Tensor) -> dict[str, float]:
        """The tasks of the training that a text names, by their shares; none where it names none.

        Args:
            text: words, or their embedding ``[D]``.

        Raises:
            ConfigError: if the policy was trained without ``network.text_mixture``.
        """
        known, row = self._compare(text)
        shares = known(row)[0].tolist()
        names = self.info.get("task_table")
        ids = self.config.trained_task_ids
        found = {str(i) if names is None else names[i]: s for i, s in zip(ids, shares, strict=True)}
        ordered = sorted(found.items(), key=lambda item: -item[1])
        return {name: share for name, share in ordered if share >= _LEAST_SHARE}

    def _compare(self, text: str | Tensor) -> tuple[KnownTexts, Tensor]:
        """The texts of the training, and the embedding [1, D] of another."""
        if self._known is None:
            raise ConfigError(
                "this policy does not tell which tasks a text names: train with prompt=both or "
                "text, and network.text_mixture=true"
            )
        row = pretrained.embed_prompts([text], self.info, self.config.text_dim)
        return self._known, row.to(self._reference())

    def without_state(self) -> LLMDPDPolicy:
        """The same policy, which follows a demonstration on the tasks that it was trained on, too.

        There it would see the state and the task's embedding as well; networks are shared.
        """
        config = dataclasses.replace(self.config, trained_task_ids=())
        policy = type(self)(config, self.actor, self.encoder, self.info)
        policy.training, policy.library = self.training, self.library
        return policy

    def make_tables(
        self, texts: Mapping[int, str | Tensor], trajectories: Mapping[int, Demonstrations]
    ) -> PromptTables:
        """Prompts of several tasks, for an evaluator, by task id; each is as in :meth:`prompt`.

        A policy that retrieves reads all demonstrations of a task. What is empty has no table.
        """
        config = self.config
        for name, is_given, is_read in (
            ("text", bool(texts), config.uses_text),
            ("trajectory", bool(trajectories), config.uses_trajectory),
        ):
            if is_given and not is_read:
                raise ConfigError(
                    f"this policy reads no {name} (prompt={config.prompt!r}): leave it out"
                )
        table = bank = None
        if texts:
            rows = pretrained.embed_prompts([*texts.values()], self.info, config.text_dim)
            table = rows.new_zeros(max(texts) + 1, config.text_dim)
            table[list(texts)] = rows
        if trajectories:
            sizes = (config.trajectory_length, config.observation_dim, config.action_dim)
            bank = TrajectoryPromptBank.from_rollouts(trajectories, *sizes, config.spacing)
            if (columns := self._goal_columns) is not None:
                bank.prompts["observation"][..., columns] = 0.0
            if config.retrieves and max(map(len, trajectories.values())) > 1:
                bank = bank.concatenated()
        return PromptTables(table, bank)

    @torch.no_grad()
    def _embed_prompt(self, tables: PromptTables) -> Tensor | None:
        """z ``[d_z]`` of what is given, the mean over the demonstrations; ``None`` without it."""
        network = self.prompt_network(tables)
        if network is None:
            return None
        demonstrations = tables.trajectories
        row = torch.tensor([-1]) if demonstrations is None else torch.arange(len(demonstrations))
        row = row.to(self.device).unsqueeze(-1)
        text_row = torch.full_like(row, -1 if tables.text is None else 0)
        prompt = {"text_index": text_row, "trajectory_index": row}
        batch = TensorDict({"prompt": prompt}, batch_size=[len(row)])
        return network(batch).get("prompt_embedding").mean(0)

    def prompt_network(self, tables: PromptTables) -> PromptNetwork | None:
        """The encoder on tables of prompts; ``None`` for a policy without encoder."""
        tables = self.filled(tables)
        return None if self.encoder is None else PromptNetwork(self.encoder, tables)

    def make_retrieval(self, tables: PromptTables) -> PromptRetrieval:
        """The retrieval from the trajectory prompts in ``tables``."""
        bank, spec = self.filled(tables).trajectories, self.config.retrieval
        assert bank is not None
        assert spec is not None
        return PromptRetrieval(bank, spec, self.config.observation_fields)

    def make_context_transform(self, tables: PromptTables, *, successors: bool = True) -> Transform:
        """The transform that writes what the actor reads of the trajectory prompts."""
        return RetrievedContextTransform(self.make_retrieval(tables), successors=successors)

    def filled(self, tables: PromptTables) -> PromptTables:
        """The tables, checked, with an empty one in place of each that is missing."""
        self.check_tables(tables)
        config, bank = self.config, tables.trajectories
        text = torch.zeros(1, config.text_dim) if tables.text is None else tables.text
        if bank is None:
            bank = TrajectoryPromptBank.empty(
                config.trajectory_length, config.observation_dim, config.action_dim
            )
        return PromptTables(text, bank)

    def check_tables(self, tables: PromptTables) -> None:
        """Check that all prompts are there that the policy cannot do without.

        Raises:
            ConfigError: if prompts are missing, have another length, or the policy is prompted.
        """
        if not isinstance(tables, PromptTables):
            raise ConfigError(f"the prompts are a {type(tables).__name__}: give PromptTables(...)")
        config, bank = self.config, tables.trajectories
        if self.is_prompted:
            if tables.text is not None or bank is not None:
                raise ConfigError("this policy is prompted already: leave the tables out")
            return
        if config.uses_text and tables.text is None and not config.text_dropout:
            raise ConfigError("this policy reads text prompts: give text=...")
        if config.uses_trajectory and bank is None and not config.trajectory_dropout:
            raise ConfigError("this policy reads trajectory prompts: give trajectories=...")
        if bank is not None and config.uses_trajectory:
            bank.check_length(config.trajectory_length, retrieves=config.retrieves)

    @staticmethod
    def is_saved(folder: str | os.PathLike[str]) -> bool:
        """Whether ``folder`` holds a policy that :meth:`save_pretrained` wrote."""
        return pretrained.is_saved(folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, ``config.json`` and a card, each complete or not at all.

        The normalisation of the observation is among the weights. A prompt is not saved, an encoder
        that the configuration does not describe is refused with a ``ConfigError``.
        """
        own, weights = pretrained.find_own(self), self._weights()
        pretrained.write_policy(
            Path(folder), self.config, self.info, weights, own=own, library=self.library
        )

    def push_to_hub(
        self, repository: str, folder: str | os.PathLike[str], *, private: bool = True
    ) -> str:
        """Save into ``folder``, publish it as ``"owner/name"`` on the Hub, return its address."""
        self.save_pretrained(folder)
        return pretrained.upload_policy(Path(folder), repository, private=private)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        actor: TensorDictModuleBase | None = None,
        trust: Collection[str] = (),
    ) -> LLMDPDPolicy:
        """Read what :meth:`save_pretrained` wrote. Nothing is unpickled.

        Args:
            folder: of the policy; or, if there is no such folder, ``"owner/name"`` on the Hub.
            device: where all of it is put.
            dtype: of its floating-point numbers; default: float32.
            revision: of the repository on the Hub.
            actor: takes the saved weights, where the actor is the user's own.
            trust: packages that may be imported, where denoiser or text encoder are of somebody's
                own and the policy names them.

        Raises:
            ConfigError: if an actor is needed and not given, or it names code that is not trusted.
            DamagedError: if the weights are not what was saved, or the folder holds a file of a
                kind that does not belong there, a pickle for example; then nothing is read.
            DataError: if a file is missing, malformed, or does not fit the other.
        """
        saved = pretrained.open_policy(folder, revision)
        with pretrained.explained_description(saved.path):
            config = NetworkConfig(**saved.network)
        saved.check_trust(trust)
        with pretrained.explained_description(saved.path):
            networks = make_networks(config)
        saved.check_own(actor)
        policy = cls(config, actor or networks.acting, networks.encoder, saved.info)
        policy.load_state_dict(saved.read_weights(policy._weights()))
        policy.library = saved.read_library(config)
        return policy.to(device=device, dtype=dtype or torch.float32).eval()

    def _weights(self) -> dict[str, Tensor]:
        """The tensors of actor and encoder under fixed names."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("actor.", "encoder."))}
