"""How a policy chooses its action; what it does on its own is asked of policies."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from llmdpd_torchrl.policies.acting import write_action


class NotesTheKind(TensorDictModuleBase):
    """Writes 1 where it would sample, and 0 elsewhere."""

    in_keys = ("observation",)
    out_keys = ("action",)

    def forward(self, tensordict, *, generator=None):
        sampled = exploration_type() == ExplorationType.RANDOM
        return tensordict.set("action", torch.full_like(tensordict["observation"], float(sampled)))


def actions(acting=None, *, gate=None, diffuses=True):
    state = TensorDict({"observation": torch.zeros(4, 2)}, [4])
    if gate is not None:
        state["prompt", "observation_gate"] = torch.tensor(gate).unsqueeze(-1)
    write_action(NotesTheKind(), state, diffuses=diffuses, acting=acting)
    return state["action"].mean(-1).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"diffuses": False}, [0, 0, 0, 0]),
        ({"gate": [1.0, 0.0, 0.0, 1.0]}, [1, 0, 0, 1]),
        ({"gate": [0.0, 0.0, 0.0, 0.0]}, [0, 0, 0, 0]),
        ({"gate": [1.0, 0.0, 0.0, 1.0], "diffuses": False}, [0, 0, 0, 0]),
        ({"gate": [1.0, 0.0, 0.0, 1.0], "acting": "sampled"}, [1, 1, 1, 1]),
        ({"acting": "deterministic"}, [0, 0, 0, 0]),
    ],
)
def test_what_is_sampled(options, expected):
    assert actions(**options) == expected


def test_an_exploration_type_is_followed_unless_the_call_says_how():
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actions() == [0, 0, 0, 0]
        assert actions("sampled") == [1, 1, 1, 1]
