"""How a policy chooses its action: sampled from its actor, or without randomness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

#: Entry [*, 1] that is 0 where the state is hidden: there the policy follows a demonstration.
GATE: NestedKey = ("prompt", "observation_gate")

Acting: TypeAlias = Literal["sampled", "deterministic"]
"""How actions are chosen: from the actor's distribution, or without randomness."""

_KINDS: Mapping[Acting, ExplorationType] = {
    "sampled": ExplorationType.RANDOM,
    "deterministic": ExplorationType.DETERMINISTIC,
}


def write_action(
    actor: TensorDictModuleBase,
    state: TensorDictBase,
    *,
    diffuses: bool,
    acting: Acting | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Write an actor's ``out_keys`` into ``state`` [*], its inputs.

    Args:
        actor: called under TorchRL's exploration types.
        state: its inputs, and the observation gate, if there is one.
        diffuses: whether the actor is a diffusion, whose samples are its own way to act.
        acting: how; ``None``: by TorchRL's exploration type and, where none is set, by the actor's
            own way: a diffusion samples where the gate is open or there is none, and is
            deterministic where it is shut; any other actor is deterministic.
        generator: of sampled actions.
    """

    def act(kind: ExplorationType, rows: TensorDictBase) -> TensorDictBase:
        with set_exploration_type(kind):
            return actor(rows, generator=generator)

    kind = exploration_type() if acting is None else _KINDS[acting]
    if kind is None:
        planned = _is_planned(state, diffuses)
        if planned.any() and not planned.all():
            sampled, others = act(_KINDS["sampled"], state[~planned]), state[planned]
            others = act(_KINDS["deterministic"], others)
            for key in actor.out_keys:
                rows = sampled.get(key)
                value = rows.new_empty((*planned.shape, *rows.shape[1:]))
                value[~planned], value[planned] = rows, others.get(key)
                state.set(key, value)
            return
        kind = _KINDS["deterministic" if planned.all() else "sampled"]
    act(kind, state)


def _is_planned(state: TensorDictBase, diffuses: bool) -> Tensor:
    """Which rows [*], or whether all, are acted on without sampling by an actor's own way."""
    gate = state.get(GATE, None)
    if not diffuses or gate is None:
        return torch.tensor(not diffuses)
    return (gate == 0).squeeze(-1)
