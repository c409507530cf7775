"""What the networks read: observation features, prompt embedding z, retrieved context, gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn

from llmdpd_torchrl.modules.denoiser import make_mlp
from llmdpd_torchrl.modules.known_texts import KnownTexts
from llmdpd_torchrl.modules.trajectory_encoder import TrajectoryEncoder
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, DataError


class ObservationFeatures(nn.Module):
    """Select named fields of an observation, append differences of fields, and standardise.

    A difference such as *object - hand* means the same in every task and at every placement, where
    the absolute positions let a network memorise the training tasks. The statistics are those of
    :meth:`fit`, to be called with observations of training tasks only.

    Args:
        fields: half-open index ranges by name, as in a manifest's ``observation_layout``.
        keep: names of the fields that are read.
        differences: pairs of names ``(a, b)`` of equally long fields: a - b is appended.
        scales: lengths in the observation's units; tanh((a - b) / scale) is appended for each. A
            hand must be led to a centimetre in a workspace of a metre, and standardised differences
            hardly tell one centimetre from two.
        clip: standardised values are clipped to ``[-clip, clip]``: entries that hardly vary in
            training must not explode on another task.

    Shapes: ``[*, O]`` of any number type to ``[*, out_features]`` in the module's.

    Raises:
        ConfigError: if a name is not in ``fields`` or a pair has unequal lengths.
        DataError: when called, if the observation has another width than ``fields`` say.

    Examples:
        >>> features = ObservationFeatures({"hand": (0, 1), "goal": (1, 2)}, keep=["hand"],
        ...                                differences=[("goal", "hand")])
        >>> features.fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))(torch.tensor([[1.0, 3.0]]))
        tensor([[0., 0.]])
    """

    mean: torch.Tensor
    std: torch.Tensor
    _selected: torch.Tensor
    _first: torch.Tensor
    _second: torch.Tensor

    def __init__(
        self,
        fields: Mapping[str, Sequence[int]],
        keep: Sequence[str],
        differences: Sequence[Sequence[str]] = (),
        *,
        scales: Sequence[float] = (),
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        if any(scale <= 0 for scale in scales):
            raise ConfigError(f"observation_scales is {[*scales]}: each must be above 0")
        names = [*keep, *(name for pair in differences for name in pair)]
        unknown = sorted(set(names) - set(fields))
        if unknown:
            raise ConfigError(
                f"unknown observation field {unknown[0]!r}: use some of {', '.join(fields)}"
            )
        entries = {name: list(range(*fields[name])) for name in names}
        for first, second in differences:
            if len(entries[first]) != len(entries[second]):
                raise ConfigError(f"observation fields {first!r} and {second!r} differ in length")
        self.clip = clip
        self.width = max(end for _, end in fields.values())
        columns = {
            "_selected": [i for name in keep for i in entries[name]],
            "_first": [i for first, _ in differences for i in entries[first]],
            "_second": [i for _, second in differences for i in entries[second]],
        }
        for name, indices in columns.items():
            # A constant of the configuration, rebuilt from it; not state.
            self.register_buffer(name, torch.tensor(indices, dtype=torch.int64), persistent=False)
        self.scales = tuple(scales)
        standardised = len(columns["_selected"]) + len(columns["_first"])
        self.out_features = standardised + len(columns["_first"]) * len(self.scales)
        self.register_buffer("mean", torch.zeros(standardised, dtype=torch.float32))
        self.register_buffer("std", torch.ones(standardised, dtype=torch.float32))

    def _select(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if observation.shape[-1] != self.width:
            raise DataError(
                f"the observation has {observation.shape[-1]} entries, the network reads "
                f"{self.width}: use the environment that it was made for"
            )
        observation = observation.to(self.mean.dtype)
        differences = observation[..., self._first] - observation[..., self._second]
        return torch.cat([observation[..., self._selected], differences], dim=-1), differences

    @torch.no_grad()
    def fit(self, observation: torch.Tensor) -> ObservationFeatures:
        """Set mean and standard deviation from observations ``[N, O]`` of the training tasks.

        The deviation is at least 0.01 of the observation's units (1 cm): less is noise.
        """
        features, _ = self._select(observation)
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(0.01))
        return self

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Features of ``observation``, ``[*, out_features]``."""
        features, differences = self._select(observation)
        features = ((features - self.mean) / self.std).clamp(-self.clip, self.clip)
        fine = [torch.tanh(differences / scale) for scale in self.scales]
        return torch.cat([features, *fine], dim=-1)


class TextHead(nn.Module):
    """h_ψ: an MLP on the centred embedding of a frozen language model.

    Raw language-model embeddings of any two prompts are nearly parallel (mean cosine .95 and more),
    so the mean over the training prompts is subtracted and the result divided by one RMS.

    Args:
        training_embeddings: ``[T, D]`` embeddings of the training tasks' prompts.
        features: width of the output.
        activation: of the hidden layer, 128 wide.
        known: the same texts and others that name the tasks: any text then becomes a mixture of
            what is made of theirs, and 0, as without a text, where it names none of them. ``None``:
            an MLP alone, for texts that lie between those of the training.

    Shapes: ``[*, D]`` to ``[*, features]``.

    Examples:
        >>> embeddings = torch.randn(10, 576)
        >>> TextHead(embeddings, features=32)(embeddings[:2]).shape
        torch.Size([2, 32])
    """

    mean: torch.Tensor
    rms: torch.Tensor

    def __init__(
        self,
        training_embeddings: torch.Tensor,
        features: int = 32,
        activation: str = "mish",
        known: KnownTexts | None = None,
    ) -> None:
        super().__init__()
        self.known = known
        mean = training_embeddings.mean(0)
        rms = (training_embeddings - mean).pow(2).mean().sqrt()
        self.register_buffer("mean", mean)
        # One training task has no spread around its own mean.
        self.register_buffer("rms", rms if rms > 0 else torch.ones_like(rms))
        self.features = features
        self.network = make_mlp(training_embeddings.shape[-1], (128,), features, activation)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Features of a text embedding."""
        if self.known is None:
            return self.network((embedding - self.mean) / self.rms)
        return self.known(embedding) @ self.network((self.known.texts[0] - self.mean) / self.rms)


class PromptEncoder(nn.Module):
    """z = [h_ψ(e_text); g_φ(trajectory)], with either part left out for an ablation.

    Args:
        text: h_ψ, or ``None``.
        trajectory: g_φ, or ``None``.

    Raises:
        ValueError: if both are ``None``: without prompts there is no encoder.

    Examples:
        >>> PromptEncoder(TextHead(torch.randn(10, 576), features=32), None).embedding_dim
        32
    """

    def __init__(self, text: TextHead | None, trajectory: TrajectoryEncoder | None) -> None:
        super().__init__()
        if text is None and trajectory is None:
            raise ValueError("a prompt encoder needs a text head, a trajectory encoder, or both")
        self.text = text
        self.trajectory = trajectory

    @property
    def reference(self) -> torch.Tensor:
        """A tensor on the encoder's device and of its floating-point type."""
        if self.text is not None:
            return self.text.mean
        assert self.trajectory is not None
        return self.trajectory.position

    @property
    def embedding_dim(self) -> int:
        """d_z, the width of z."""
        parts = [part for part in (self.text, self.trajectory) if part is not None]
        return sum(part.features for part in parts)

    def forward(
        self, text: torch.Tensor | None = None, trajectory: TensorDictBase | None = None
    ) -> torch.Tensor:
        """z of text embeddings ``[*, D]`` and prompts ``[*, L]``, ``[*, d_z]``."""
        prompts = ((self.text, text), (self.trajectory, trajectory))
        return torch.cat([part(given) for part, given in prompts if part is not None], dim=-1)


class PromptNetwork(TensorDictModuleBase):
    """Encode the prompts of a batch, each distinct prompt once.

    The transforms write row numbers into the batch, which point into the tables held here: B
    transitions of T tasks cost a few encodings per task instead of B. Row -1 means no prompt: its
    part of z is 0.

    The tables are data: they are neither parameters nor buffers of this module, so that they enter
    no ``state_dict`` and no copy of the parameters. They follow the encoder to its device and
    floating-point type.

    Args:
        encoder: the trainable part.
        tables: the prompts that rows point into.

    z is written to ``"prompt_embedding"`` [*, d_z]. ``in_keys`` are ``("prompt", "text_index")``
    and ``("prompt", "trajectory_index")`` [*, 1], less that of a part that the encoder lacks.

    Raises:
        ValueError: if a table is missing for a part that the encoder has.

    Examples:
        >>> from tensordict import TensorDict
        >>> table = torch.randn(10, 576)
        >>> encoder = PromptEncoder(TextHead(table, features=32), None)
        >>> network = PromptNetwork(encoder, PromptTables(text=table))
        >>> rows = torch.tensor([[3], [7], [3]])
        >>> batch = TensorDict({"prompt": {"text_index": rows}}, [3])
        >>> network(batch)["prompt_embedding"].shape
        torch.Size([3, 32])
    """

    def __init__(self, encoder: PromptEncoder, tables: PromptTables) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_keys: list[NestedKey] = []
        self.out_keys = ["prompt_embedding"]
        for name, _, table in self._parts(tables):
            if table is None:
                raise ValueError(f"the encoder reads {name} prompts: give PromptTables with them")
            self.in_keys.append(("prompt", f"{name}_index"))
        # In a tuple, so that they are not registered. LossModule makes parameters and buffers of
        # its networks its own state, and keeps the network itself where .to() does not reach it.
        self._tables = (tables.shallow_copy(),)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write z."""
        (tables,) = self._tables
        tables.follow(self.encoder.reference)
        # Each table by itself: of the pairs, dropout alone would make several times as many.
        features = [
            _encode_rows(part, table, tensordict.get(("prompt", f"{name}_index")))
            for name, part, table in self._parts(tables)
        ]
        return tensordict.set("prompt_embedding", torch.cat(features, dim=-1))

    def _parts(self, tables: PromptTables) -> list[tuple[str, nn.Module, Any]]:
        """Name, encoder and table of each part of z."""
        encoder, bank = self.encoder, tables.trajectories
        parts: list[tuple[str, nn.Module, Any]] = []
        if encoder.text is not None:
            parts.append(("text", encoder.text, tables.text))
        if encoder.trajectory is not None:
            parts.append(("trajectory", encoder.trajectory, None if bank is None else bank.prompts))
        return parts


def _encode_rows(part: nn.Module, table: Any, row: torch.Tensor) -> torch.Tensor:
    """Features [*, F] of rows [*, 1] of a table, each distinct one encoded once; 0 for row -1."""
    distinct, inverse = torch.unique(row.squeeze(-1).clamp_min(0), return_inverse=True)
    return torch.where(row >= 0, part(table[distinct])[inverse], 0.0)


class ObservationConditioner(nn.Module):
    """The actor's condition: features of the observation, and the prompt embedding as it is.

    Args:
        observation_module: maps observations to features.

    Shapes: ``[*, O]`` and any number of ``[*, C_i]`` to ``[*, out_features + sum C_i]``.

    Examples:
        >>> conditioner = ObservationConditioner(nn.Identity())
        >>> conditioner(torch.randn(2, 3), torch.randn(2, 5)).shape
        torch.Size([2, 8])
    """

    def __init__(self, observation_module: nn.Module) -> None:
        super().__init__()
        self.observation_module = observation_module

    def forward(self, observation: torch.Tensor, *embeddings: torch.Tensor) -> torch.Tensor:
        """Concatenate features and embeddings."""
        return torch.cat([self.observation_module(observation), *embeddings], dim=-1)
