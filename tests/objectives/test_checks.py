"""What is refused, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.data import Bounded
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
        ({"guidance": "two_step"}, "'two_step'.*chain, one_step"),
        ({"q_normalization": "max"}, "'max'.*cross, own, none"),
        ({"prompt_gradient": ("critic",)}, "'critic'.*diffusion, qvalue, guidance"),
        ({"reduction": "median"}, "'median'.*none, mean, sum"),
        ({"lmbda": -1.0}, "lmbda is -1.0: it must be a finite number, not negative"),
        ({"lmbda": math.nan}, "lmbda is nan"),
        ({"lmbda": torch.tensor(math.inf)}, "lmbda is inf"),
        ({"max_q_backup": -1}, "max_q_backup is -1: it can not be negative"),
        ({"target_sampling_steps": 0}, "target_sampling_steps is 0: the actor takes 1 to 5"),
        ({"target_sampling_steps": 6}, "target_sampling_steps is 6: the actor takes 1 to 5"),
        ({"check_inputs": "always"}, "check_inputs is 'always'"),
    ],
)
def test_settings_that_can_not_be(make_loss, kwargs, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_loss(**kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("normalization", ["cross", "own", "none"])
@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_critics(make_networks, num, normalization):
    prompt, actor, critics = make_networks()
    with pytest.raises(ConfigError, match=rf"too few critics \({num}\).*make_qvalue_networks"):
        LLMDPDLoss(prompt, actor, critics[:num], q_normalization=normalization)


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
    loss, data = make_loss(check_inputs=False), make_data()
    data.batch_size = []
    data["next"].batch_size = []
    data["next", key] = torch.zeros(shape, dtype=data["next", key].dtype)
    expected = rf"\('next', '{key}'\) has shape \[.*ask for \[{BATCH}, 1\].*unsqueeze"
    for term in ("forward", "qvalue_loss"):
        with pytest.raises(DataError, match=expected):
            getattr(loss, term)(data)
    assert loss.actor_loss(data)[0].isfinite()  # which reads none of them


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("term", TERMS)
def test_actions_of_another_width(make_loss, make_data, width, term):
    data = make_data().set("action", torch.zeros(BATCH, width))
    with pytest.raises(DataError, match=rf"'action' has shape \[{BATCH}, {width}\].*makes 2"):
        getattr(make_loss(check_inputs=False), term)(data)


def test_an_empty_batch(make_loss, make_data):
    with pytest.raises(DataError, match="the batch is empty"):
        make_loss()(make_data()[:0])


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "key",
    ["observation", "action", ("prompt", "text"), ("next", "observation"), ("next", "reward")],
)
@pytest.mark.parametrize("term", TERMS)
def test_values_that_are_not_finite(make_loss, make_data, term, key, value):
    loss, data = make_loss(), make_data()
    data[key][4, 0] = value
    if key[0] == "next" and term in ("actor_loss", "diffusion_loss"):
        assert getattr(loss, term)(data)[0].isfinite()  # which do not read s'
        return
    with pytest.raises(DataError, match="NaN or infinite in 1 places") as error:
        getattr(loss, term)(data)
    assert repr(key) in str(error.value)
    assert "[4, 0]" in str(error.value)
    assert "td_error" not in data


def test_large_values_are_not_mistaken_for_infinite_ones(make_loss, make_data):
    data = make_data()
    data["observation"].fill_(3e38)  # their sum overflows
    loss = make_loss()
    with pytest.raises(ConfigError, match="not finite though every input is"):
        loss(data)


@pytest.mark.parametrize("term", TERMS)
def test_networks_that_have_diverged(make_loss, make_data, term):
    loss = make_loss()
    network = loss.qvalue_network_params if term == "qvalue_loss" else loss.actor_network_params
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    data = make_data()
    with pytest.raises(ConfigError, match="the networks have diverged"):
        getattr(loss, term)(data)
    assert "td_error" not in data


def test_actions_outside_the_actors_range(make_ql, make_data):
    loss, data = make_ql(), make_data()
    data["action"][3, 1] = 1.5
    for term in TERMS:
        with pytest.raises(DataError, match=r"reaches from .* to 1.5, outside .*\[-1, 1\]"):
            getattr(loss, term)(data)
    data["action"][3, 1] = 1.0 + 1e-4  # half precision rounds by as much
    loss(data)
    spec = Bounded(-2.0, 2.0, (ACT,))
    actor = DiffusionActor(ACT, OBS, in_keys=["observation"], hidden=(8,), spec=spec)
    wider = DiffusionQLLoss(actor, make_qvalue_networks(OBS, ACT, hidden=(8,)))
    data["action"][3, 1] = 1.5
    wider(data)


def test_values_are_not_looked_at_unless_asked_for(make_ql, make_data):
    data = make_data()
    data["action"][3, 1] = 1.5
    data["next", "reward"][0] = math.nan
    out = make_ql(check_inputs=False)(data)
    assert out["loss_qvalue"].isnan()
    with pytest.raises(DataError, match="reward"):
        make_ql(check_inputs=True)(data)
