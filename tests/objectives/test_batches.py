"""Reductions, batch shapes, weights, masks and targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from llmdpd_torchrl.objectives import GUIDANCE_MODES, LLMDPDLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

BATCH = 7


def test_reductions_agree(make_loss, make_data, run):
    outs = {
        reduction: run(make_loss(reduction=reduction), make_data())
        for reduction in ("none", "mean", "sum")
    }
    for key in ("loss_actor", "loss_qvalue", "bc", "guidance"):
        rows = outs["none"][key]
        assert rows.shape == (BATCH,)
        torch.testing.assert_close(outs["mean"][key], rows.mean())
        torch.testing.assert_close(outs["sum"][key], rows.sum())


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_any_batch_shape(make_loss, make_data, run, batch, guidance):
    data = make_data(*batch)
    out = run(make_loss(guidance=guidance, reduction="none"), data)
    assert out["loss_actor"].shape == out["loss_qvalue"].shape == batch
    assert data["td_error"].shape == batch


def test_priority_weights(make_loss, make_data, run):
    data, weights = make_data(), torch.rand(BATCH)
    rows = run(make_loss(reduction="none"), data.clone())
    weighted = run(make_loss(), data.clone().set("priority_weight", weights))
    for key in ("loss_actor", "loss_qvalue", "bc", "guidance"):
        expected = (rows[key] * weights).sum() / weights.sum()
        torch.testing.assert_close(weighted[key], expected)
    loss = make_loss()
    loss.use_prioritized_weights = False
    ignored = run(loss, data.clone().set("priority_weight", weights))
    torch.testing.assert_close(ignored["loss_qvalue"], rows["loss_qvalue"].mean())


def test_masked_rows_do_not_count(make_loss, make_data, run):
    data, valid = make_data(), torch.arange(BATCH) < 4
    rows = run(make_loss(reduction="none"), data.clone())
    masked = data.clone().set(("collector", "mask"), valid.unsqueeze(-1))
    out = run(make_loss(), masked.clone())
    for key in ("loss_qvalue", "bc"):
        torch.testing.assert_close(out[key], rows[key][valid].mean())
    # Nor do they change what values are divided by.
    masked["observation"] = torch.where(valid.unsqueeze(-1), masked["observation"], 9.0)
    torch.testing.assert_close(run(make_loss(), masked)["guidance"], out["guidance"])


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_with_and_without_vmap(out_keys, make_loss, make_data, run, guidance):
    outs = [
        run(make_loss(guidance=guidance, deactivate_vmap=flag), make_data())
        for flag in (False, True)
    ]
    for key in out_keys:
        torch.testing.assert_close(outs[0][key], outs[1][key])


def test_n_step_returns_discount_by_their_length(make_loss, make_data):
    loss, data = make_loss(), make_data()
    loss.make_value_estimator(gamma=0.5)
    data["next", "reward"] = torch.zeros(BATCH, 1)

    def target(steps: int | None):
        changed = data.clone()
        if steps is not None:
            changed["steps_to_next_obs"] = torch.full((BATCH, 1), steps)
        torch.manual_seed(0)
        return loss.qvalue_loss(changed)[1]["target_value"]

    torch.testing.assert_close(target(1), target(None))
    torch.testing.assert_close(target(3), target(1) * 0.25)


def test_value_estimators(make_loss, make_data, run):
    loss = make_loss()
    for value_type in (ValueEstimators.GAE, ValueEstimators.VTrace):
        with pytest.raises(NotImplementedError, match="LLMDPDLoss"):
            loss.make_value_estimator(value_type)
    loss.make_value_estimator(TD0Estimator, gamma=0.9, value_network=None)
    assert run(loss, make_data())["loss_qvalue"].isfinite()
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.9, lmbda=0.95)
    assert run(loss, make_data(2, 5))["loss_qvalue"].isfinite()


def test_target_actions_may_take_fewer_steps(make_networks, make_data):
    prompt, actor, critics = make_networks()
    steps = []
    actor.module.score_network.register_forward_hook(lambda *_: steps.append(1))
    LLMDPDLoss(prompt, actor, critics, target_sampling_steps=2).qvalue_loss(make_data())
    assert len(steps) == 2


@settings(max_examples=25, deadline=None)
@given(
    batch=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    guidance=st.sampled_from(GUIDANCE_MODES),
    vmap=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_shape_and_precision_keeps_what_the_loss_promises(
    make_loss, make_data, batch, dtype, guidance, vmap, seed
):
    loss = make_loss(
        seed % 97,
        guidance=guidance,
        deactivate_vmap=not vmap,
        reduction="none",
        lmbda=0.3,
    ).to(dtype)
    data = make_data(*batch, seed=seed, dtype=dtype)
    out = loss(data)
    for key in ("loss_actor", "loss_qvalue", "bc", "guidance"):
        assert out[key].shape == tuple(batch)
        assert out[key].dtype == dtype
    assert torch.equal(out["loss_actor"], out["bc"] - out["lmbda"] * out["guidance"])
    # Each critic's squared error is at most the largest, and at least one reaches it.
    worst = data["td_error"]
    assert (out["loss_qvalue"] >= worst).all()
    assert (out["loss_qvalue"] <= 2 * worst).all()
    (out["loss_actor"].mean() + out["loss_qvalue"].mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
