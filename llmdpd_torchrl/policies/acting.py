"""How a policy chooses its action: sampled, ranked by critics, or without randomness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from llmdpd_torchrl.modules.actors.diffusion import QSelectedActor
from llmdpd_torchrl.utils.errors import ConfigError

#: Entry [*, 1] that is 0 where the state is hidden: there the policy follows a demonstration.
GATE: NestedKey = ("prompt", "observation_gate")

Acting: TypeAlias = Literal["sampled", "ranked", "deterministic"]
"""How actions are chosen: from the actor's distribution, as the best of several of its samples by
the policy's critics, or without randomness."""

_KINDS: Mapping[Acting, ExplorationType] = {
    "sampled": ExplorationType.RANDOM,
    "ranked": ExplorationType.RANDOM,
    "deterministic": ExplorationType.DETERMINISTIC,
}


def plain_actor(actor: TensorDictModuleBase) -> TensorDictModuleBase:
    """The actor itself, without critics that rank its samples."""
    return actor.actor if isinstance(actor, QSelectedActor) else actor


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
            deterministic where it is shut; any other actor is deterministic. Where samples can be
            ranked, they are.
        generator: of sampled actions.

    Raises:
        ConfigError: if actions are to be ranked, and there are no critics.
    """
    plain = plain_actor(actor)
    best: Acting = "sampled" if plain is actor else "ranked"
    if acting == "ranked" != best:
        raise ConfigError("this policy has no critics to rank by: train with network.candidates=50")

    def act(way: Acting, rows: TensorDictBase) -> TensorDictBase:
        with set_exploration_type(_KINDS[way]):
            return (actor if way == "ranked" else plain)(rows, generator=generator)

    asked = exploration_type()
    if acting is None and asked is not None:
        acting = best if asked == ExplorationType.RANDOM else "deterministic"
    if acting is None:
        planned = _is_planned(state, diffuses)
        if planned.any() and not planned.all():
            sampled, others = act(best, state[~planned]), act("deterministic", state[planned])
            for key in plain.out_keys:
                rows = sampled.get(key)
                value = rows.new_empty((*planned.shape, *rows.shape[1:]))
                value[~planned], value[planned] = rows, others.get(key)
                state.set(key, value)
            return
        acting = "deterministic" if planned.all() else best
    act(acting, state)


def _is_planned(state: TensorDictBase, diffuses: bool) -> Tensor:
    """Which rows [*], or whether all, are acted on without sampling by an actor's own way."""
    gate = state.get(GATE, None)
    if not diffuses or gate is None:
        return torch.tensor(not diffuses)
    return (gate == 0).squeeze(-1)
