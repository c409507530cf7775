"""The base of the prompt transforms, and the two that need no table of prompts."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, expand_as_right
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import Transform

MODES = ("index", "tensor")
"""``index``: write the row of a prompt in a frozen table; ``tensor``: write what is in that row."""


class PromptTransform(Transform):
    """Base of transforms whose outputs are constant over an episode.

    On an environment the outputs are computed once per reset and copied by reference at each step;
    on a replay buffer they are computed for every sampled batch. Subclasses implement
    :meth:`_prompt` and :meth:`_specs`.

    Examples:
        >>> from tensordict import TensorDict
        >>> class TaskNumber(PromptTransform):
        ...     def _prompt(self, tensordict, *, sampling):
        ...         return {"number": tensordict["task_id"].float()}
        >>> transform = TaskNumber(in_keys=["task_id"], out_keys=["number"])
        >>> transform(TensorDict({"task_id": torch.tensor([[7]])}, [1]))["number"]
        tensor([[7.]])
    """

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        """Outputs for the rows of ``tensordict``, which holds ``in_keys``.

        Args:
            tensordict: a sampled batch of transitions, or what a reset returned.
            sampling: true for the former.
        """
        raise NotImplementedError

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        """Specs of the outputs under an environment of batch size ``shape``."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs into a sampled batch."""
        for key, value in self._prompt(tensordict, sampling=True).items():
            tensordict.set(key, value)
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if tensordict is None:
            tensordict = tensordict_reset.empty()
        reset = tensordict.get("_reset", None)
        for key, value in self._prompt(tensordict_reset, sampling=False).items():
            previous = None if reset is None else tensordict.get(key, None)
            if previous is not None:
                # A partial reset: the other environments keep the prompt of their episode.
                value = torch.where(expand_as_right(reset.squeeze(-1), value), value, previous)
            tensordict_reset.set(key, value)
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.out_keys:
            next_tensordict.set(key, tensordict.get(key))
        return next_tensordict

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Declare the outputs as observations."""
        for key, spec in self._specs(observation_spec.shape).items():
            observation_spec[key] = spec.to(observation_spec.device)
        return observation_spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}(in_keys={self.in_keys}, out_keys={self.out_keys})"


class AbsentPromptTransform(PromptTransform):
    """Write row -1, which means no prompt, for a policy that was trained with prompt dropout.

    Args:
        out_keys: ``[("prompt", "text_index")]`` or ``[("prompt", "trajectory_index")]``.
        in_keys: an entry of the shape of the batch, default ``["task_id"]``.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = AbsentPromptTransform([("prompt", "text_index")])
        >>> transform(TensorDict({"task_id": torch.tensor([[7]])}, [1]))["prompt", "text_index"]
        tensor([[-1]])
    """

    def __init__(
        self, out_keys: list[NestedKey], *, in_keys: list[NestedKey] | None = None
    ) -> None:
        super().__init__(in_keys=in_keys or ["task_id"], out_keys=out_keys)

    def _prompt(
        self, tensordict: TensorDictBase, *, sampling: bool
    ) -> dict[NestedKey, torch.Tensor]:
        task = tensordict.get(self.in_keys[0])
        return {key: torch.full_like(task, -1, dtype=torch.int64) for key in self.out_keys}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {key: Bounded(-1, 0, (*shape, 1), dtype=torch.int64) for key in self.out_keys}


class PromptEmbeddingTransform(PromptTransform):
    """Run a prompt network once per reset, without gradient, and write z for all of the episode.

    For environments only: on a replay buffer z would be of outdated weights and without gradient,
    so the loss runs the network there.

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
        rows = tensordict.select(*self.in_keys)
        home = rows.get(self.in_keys[0]).device
        weight = next(self._network[0].parameters(), None)
        z = self._network[0](rows if weight is None else rows.to(weight.device))
        return {self.out_keys[0]: z.get(self.out_keys[0]).to(home)}

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        return {self.out_keys[0]: Unbounded((*shape, self.embedding_dim), dtype=torch.float32)}


def check_mode(mode: str, dropout: float = 0.0) -> str:
    """``mode``, if it is one of :data:`MODES` and fits the dropout."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: use one of {', '.join(MODES)}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}: it must be at least 0 and below 1")
    if dropout and mode != "index":
        raise ValueError('a prompt can only be left out by its row: use mode="index" with dropout')
    return mode


def drop_rows(row: torch.Tensor, dropout: float) -> torch.Tensor:
    """Rows ``[*]``, each replaced by -1, no prompt, with probability ``dropout``."""
    if not dropout:
        return row
    return row.masked_fill(torch.rand(row.shape, device=row.device) < dropout, -1)
