"""Other diffusion actors under the loss."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor

from llmdpd_torchrl.modules import make_qvalue_networks
from llmdpd_torchrl.objectives import (
    GUIDANCE_MODES,
    DiffusionQLLoss,
)
from llmdpd_torchrl.utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, TEXT, EMBED, BATCH = 3, 2, 6, 5, 7


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_torchrls_actor_trains_under_this_loss(make_data, run, guidance):
    torch.manual_seed(0)
    actor = TorchRLDiffusionActor(action_dim=ACT, obs_dim=OBS, num_steps=5)
    critics = make_qvalue_networks(OBS, ACT, hidden=(16,))
    loss = DiffusionQLLoss(actor, critics, guidance=guidance, max_q_backup=2)
    out = run(loss, make_data())
    assert out["guidance"] != 0
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_torchrls_actor_can_not_sample_with_fewer_steps(make_data):
    actor = TorchRLDiffusionActor(action_dim=ACT, obs_dim=OBS, num_steps=5)
    loss = DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT), target_sampling_steps=2)
    with pytest.raises(ConfigError, match="target_sampling_steps"):
        loss(make_data())


def test_other_actors_are_refused():
    actor = TensorDictModule(nn.Linear(OBS, ACT), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(TypeError, match="must be a DiffusionActor"):
        DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT))
