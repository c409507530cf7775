"""What a batch and the settings must be: refused in one line, or cast."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss
from llmdpd_torchrl.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

OBS, ACT, BATCH = 3, 2, 7
TERMS = ("forward", "actor_loss", "qvalue_loss", "diffusion_loss")


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"guidance": "two_step"}, "guidance is 'two_step': use chain or one_step"),
        ({"reduction": "median"}, "reduction is 'median': use none or mean or sum"),
        ({"lmbda": -1.0}, "lmbda is -1.0: it must be a finite number of at least 0"),
        ({"lmbda": math.nan}, "lmbda is nan"),
        ({"lmbda": torch.tensor(math.inf)}, "lmbda is inf"),
        ({"target_sampling_steps": 0}, "target_sampling_steps is 0: use 1 to 5"),
        ({"target_sampling_steps": 6}, "target_sampling_steps is 6: use 1 to 5"),
    ],
)
def test_settings_out_of_range(make_loss, kwargs, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_loss(**kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_critics(make_networks, num):
    prompt, actor, critics = make_networks()
    with pytest.raises(ConfigError, match="must be a list of two critics or more"):
        LLMDPDLoss(prompt, actor, critics[:num])


def test_actors_that_are_no_diffusion():
    module = TensorDictModule(nn.Linear(OBS, ACT), in_keys=["observation"], out_keys=["action"])
    for actor in (module, TorchRLDiffusionActor(action_dim=ACT, obs_dim=OBS)):
        with pytest.raises(TypeError, match=r"must be a DiffusionActor.*from_torchrl\(\)"):
            DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT))


def test_three_critics_are_clipped_too(make_networks, make_data, run):
    out = run(LLMDPDLoss(*make_networks(num=3)), make_data())
    assert out["loss_qvalue"].isfinite()
    assert out["target_value"] <= run(LLMDPDLoss(*make_networks()), make_data())["target_value"]


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, torch.tensor(2.0)])
def test_a_discount_outside_0_and_1(make_loss, gamma):
    loss = make_loss()
    estimators = [
        lambda: loss.make_value_estimator(gamma=gamma),
        lambda: loss.make_value_estimator(ValueEstimators.TDLambda, gamma=gamma, lmbda=0.9),
        lambda: loss.make_value_estimator(TD0Estimator, gamma=gamma, value_network=None),
        lambda: loss.make_value_estimator(TD0Estimator(gamma=float(gamma), value_network=None)),
    ]
    for make in estimators:
        with pytest.raises(ConfigError, match=r"gamma is .*must lie in \[0, 1\]"):
            make()
    assert isinstance(loss.value_estimator, TD0Estimator)
    assert loss.value_estimator.gamma == 0.99  # as it was
    for allowed in (0.0, 1.0):
        loss.make_value_estimator(gamma=allowed)


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize("key", ["observation", "reward", "done", "terminated"])
def test_a_missing_key_is_named(make_loss, make_data, key):
    with pytest.raises(DataError, match=rf"no \('next', '{key}'\)"):
        make_loss()(make_data().exclude(("next", key)))


@pytest.mark.parametrize("key", ["reward", "done", "terminated"])
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 2), (BATCH, 1, 1), (1, BATCH)])
def test_columns_that_would_broadcast(make_loss, make_data, key, shape):
    loss, data = make_loss(), make_data()
    data.batch_size = []
    data["next"].batch_size = []
    data["next", key] = torch.zeros(shape, dtype=data["next", key].dtype)
    expected = rf"\('next', '{key}'\) has shape \[.*: use \[{BATCH}, 1\]"
    for term in ("forward", "qvalue_loss"):
        with pytest.raises(DataError, match=expected):
            getattr(loss, term)(data)
    assert loss.actor_loss(data)[0].isfinite()  # which reads none of them


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("term", TERMS)
def test_actions_of_another_width(make_loss, make_data, width, term):
    data = make_data().set("action", torch.zeros(BATCH, width))
    with pytest.raises(
        DataError, match=rf"'action' has shape \[{BATCH}, {width}\]: use \[{BATCH}, 2\]"
    ):
        getattr(make_loss(), term)(data)


# ---------------------------------------------------------------------- number types


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.float32])
@pytest.mark.parametrize("value", [False, True])
def test_flags_of_any_type_mean_the_same(make_ql, make_data, run, dtype, value):
    def target(dtype):
        data = make_data()
        for key in ("done", "terminated"):
            data["next", key] = torch.full((BATCH, 1), value).to(dtype)
        return run(make_ql(), data)["target_value"]

    assert torch.equal(target(dtype), target(torch.bool))


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.uint8])
@pytest.mark.parametrize(
    "keys",
    [
        ["observation", ("next", "observation")],
        ["action"],
        [("next", "reward")],
        [("prompt", "text")],
        ["observation", "action", ("next", "observation"), ("next", "reward")],
    ],
)
def test_entries_are_cast_to_the_networks_precision(make_loss, make_data, run, keys, dtype, vmap):
    if dtype in (torch.int64, torch.uint8) and ("prompt", "text") in keys:
        return  # integers of a prompt may be rows of a table
    loss = make_loss(deactivate_vmap=not vmap)
    data, rounded = make_data(), make_data()
    for key in keys:
        data[key] = data[key].to(dtype)
        rounded[key] = data[key].float()
    out, expected = run(loss, data), run(loss, rounded)
    for key in ("loss_actor", "loss_qvalue"):
        assert out[key].dtype == torch.float32
        assert torch.equal(out[key], expected[key])
    assert data[keys[0]].dtype == dtype  # the batch itself stays


def test_integer_observations_without_a_prompt(make_ql, make_data, run):
    data = make_data()
    data["observation"] = data["observation"].to(torch.int64)
    out = run(make_ql(guidance="chain"), data.clone())
    data["observation"] = data["observation"].float()
    assert torch.equal(out["loss_actor"], run(make_ql(guidance="chain"), data)["loss_actor"])


def test_another_default_type(make_data, run):
    torch.set_default_dtype(torch.float64)
    try:
        actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(8,))
        loss = DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT, hidden=(8,)))
        out = run(loss, make_data())
    finally:
        torch.set_default_dtype(torch.float32)
    assert out["loss_actor"].dtype == out["loss_qvalue"].dtype == torch.float64


# ---------------------------------------------------------------------- values


def test_values_are_the_datas_and_the_trainers_affair(make_loss, make_data, run):
    """They are checked on loading; a loss that is not finite is noticed by the trainer."""
    data = make_data()
    data["next", "reward"][0] = math.nan
    out = run(make_loss(), data)
    assert out["loss_qvalue"].isnan()
    assert out["loss_actor"].isfinite()
