"""What the networks read: normalised observation features, prompt embedding, gated context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

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


class GatedConditioner(ObservationConditioner):
    """The condition of an actor that retrieves: state and embedding pass the observation gate.

    A network memorises its training tasks by their states and their embeddings, and on another task
    both mislead it. So both are multiplied by the gate, which is 0 there (see
    :class:`~llmdpd_torchrl.transforms.ObservationGateTransform`). The context of the retrieved step
    is not, except for the columns that help only on a known task.

    Args:
        observation_module: maps observations to features.
        gated_context: columns at the end of the context that pass the gate too.
        base: columns of the context that hold an action. Where the gate is closed they are repeated
            at the end of the condition; where it is open, zeros are there instead: with the state
            visible, the policy is not bound to the suggested action.

    Shapes: observation ``[*, O]``, gate ``[*, 1]`` in {0, 1}, context ``[*, C]`` and any number of
    embeddings ``[*, C_i]``, to ``[*, out_features + 1 + C + sum C_i + base]``.

    Examples:
        >>> conditioner = GatedConditioner(nn.Identity(), gated_context=1)
        >>> observation, context, gate = torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 1)
        >>> conditioner(observation, gate, context)
        tensor([[0., 0., 0., 1., 0.]])
    """

    def __init__(
        self,
        observation_module: nn.Module,
        gated_context: int = 0,
        base: slice | None = None,
    ) -> None:
        super().__init__(observation_module)
        self.gated_context = gated_context
        self.base = base

    def forward(self, observation: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Concatenate gated features, gate, context, its gated part, gated embeddings and base."""
        gate, context, *embeddings = others
        features = self.observation_module(observation) * gate
        base = [] if self.base is None else [context[..., self.base] * (1.0 - gate)]
        free = context.shape[-1] - self.gated_context
        context, goal_correction = context.split([free, self.gated_context], dim=-1)
        gated = (part * gate for part in (goal_correction, *embeddings))
        return torch.cat([features, gate, context, *gated, *base], dim=-1)
