"""Small networks, losses and batches, and how to run one on the other."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss

OBS, ACT, TEXT, EMBED, BATCH = 3, 2, 6, 5, 7


def networks(seed: int = 0, num: int = 2):
    torch.manual_seed(seed)
    prompt = TensorDictModule(
        nn.Linear(TEXT, EMBED), in_keys=[("prompt", "text")], out_keys=["prompt_embedding"]
    )
    actor = DiffusionActor(ACT, OBS + EMBED, hidden=(16, 16))
    critics = make_qvalue_networks(OBS, ACT, EMBED, num=num, hidden=(16, 16))
    return prompt, actor, critics


def prompted(seed: int = 0, **kwargs) -> LLMDPDLoss:
    return LLMDPDLoss(*networks(seed), **kwargs)


def prompt_free(seed: int = 0, **kwargs) -> DiffusionQLLoss:
    torch.manual_seed(seed)
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(16, 16))
    return DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT, hidden=(16, 16)), **kwargs)


def transitions(*batch: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    batch = batch or (BATCH,)

    def randn(width: int) -> torch.Tensor:
        return torch.randn(*batch, width, generator=generator, dtype=dtype)

    return TensorDict(
        {
            "observation": randn(OBS),
            "action": randn(ACT).clamp(-1, 1),
            ("prompt", "text"): randn(TEXT),
            ("next", "observation"): randn(OBS),
            ("next", "reward"): randn(1),
            ("next", "done"): torch.zeros(*batch, 1, dtype=torch.bool),
            ("next", "terminated"): torch.zeros(*batch, 1, dtype=torch.bool),
        },
        batch,
    )


@pytest.fixture(scope="session")
def make_networks():
    """A prompt encoder, an actor and a list of critics, from a seed."""
    return networks


@pytest.fixture(scope="session")
def make_loss():
    """A loss with a prompt encoder, from a seed and the loss's keywords."""
    return prompted


@pytest.fixture(scope="session")
def make_ql():
    """A loss without a prompt, from a seed and the loss's keywords."""
    return prompt_free


@pytest.fixture(scope="session")
def make_data():
    """A batch of the given shape, 7 rows by default, none of them an episode's last."""
    return transitions


@pytest.fixture(scope="session")
def out_keys():
    """What every loss puts out, in order."""
    return [
        "loss_actor",
        "loss_qvalue",
        "bc",
        "guidance",
        "lmbda",
        "q_value",
        "target_value",
    ]


@pytest.fixture(scope="session")
def run():
    """Call a loss with a fixed seed."""

    def call(loss, data, seed: int = 2):
        torch.manual_seed(seed)
        return loss(data)

    return call


@pytest.fixture(scope="session")
def grads():
    """Gradients of one network of a loss."""

    def of(loss, name: str) -> list[torch.Tensor | None]:
        return [p.grad for p in getattr(loss, f"{name}_params").parameters()]

    return of


@pytest.fixture(scope="session")
def touched(grads):
    """Whether any gradient of one network of a loss is not zero."""
    return lambda loss, name: any(
        grad is not None and grad.abs().sum() > 0 for grad in grads(loss, name)
    )
