"""State, copies, precision, devices, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict.nn import CudaGraphModule
from tensordict.nn.functional_modules import _exclude_td_from_pytree
from torch.utils._python_dispatch import TorchDispatchMode

from llmdpd_torchrl.objectives import GUIDANCE_MODES, LLMDPDLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def test_state_dict_round_trip(out_keys, make_loss, make_data, run):
    first, second = make_loss(0, lmbda=0.3), make_loss(9)
    data = make_data()
    assert not torch.equal(run(first, data)["loss_actor"], run(second, data)["loss_actor"])
    second.load_state_dict(first.state_dict())
    for key in out_keys:
        assert torch.equal(run(first, data)[key], run(second, data)[key])
    prefixes = {key.split(".")[0] for key in first.state_dict()}
    assert prefixes == {
        "lmbda",
        "_value_estimator",
        "prompt_network_params",
        "actor_network_params",
        "qvalue_network_params",
        "target_actor_network_params",
        "target_qvalue_network_params",
    }


def test_a_deep_copy_is_independent_and_equal(out_keys, make_loss, make_data, run):
    loss, data = make_loss(), make_data()
    copied = copy.deepcopy(loss)
    for key in out_keys:
        assert torch.equal(run(loss, data)[key], run(copied, data)[key])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in loss.actor_network_params.parameters() if p.ndim > 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_double_precision(make_networks, make_data, run, when):
    networks = make_networks()
    if when == "before":
        networks = (networks[0].double(), networks[1].double(), [c.double() for c in networks[2]])
    loss = LLMDPDLoss(*networks)
    if when == "after":
        loss(make_data())
        loss.double()
    data = make_data().double()
    for key in ("done", "terminated"):
        data["next", key] = data["next", key].bool()
    out = run(loss, data)
    assert out["loss_actor"].dtype == out["loss_qvalue"].dtype == torch.float64
    (out["loss_actor"] + out["loss_qvalue"]).backward()


def test_reset_parameters_recursive(make_ql):
    loss = make_ql()
    before = copy.deepcopy(loss.state_dict())
    torch.manual_seed(99)
    loss.reset_parameters_recursive()
    changed = [
        key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert {key.split(".")[0] for key in changed} == {
        "actor_network_params",
        "qvalue_network_params",
        "target_actor_network_params",
        "target_qvalue_network_params",
    }


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_every_tensor_moves_with_the_loss(make_loss, make_data, guidance):
    loss = make_loss(guidance=guidance)
    loss(make_data())
    loss.to("cuda")
    state = loss.state_dict()
    assert "lmbda" in state
    assert any("alphas_cumprod" in key for key in state)
    assert {value.device.type for value in state.values()} == {"cuda"}
    loss.lmbda = 0.5
    assert loss.lmbda.device.type == "cuda"
    out = loss(make_data().to("cuda"))
    (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert all(p.grad is not None and p.grad.device.type == "cuda" for p in loss.parameters())


class HostReads(TorchDispatchMode):
    """Notes every operation whose result, or its shape, the host would have to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique", "masked_select", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name.startswith(self.WAITS) or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("lmbda", [0.0, 0.5])
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_an_update_never_waits_for_the_device(make_loss, make_data, guidance, lmbda, vmap):
    loss = make_loss(guidance=guidance, deactivate_vmap=not vmap, lmbda=lmbda)
    data = make_data()
    # Casts of the entries do not wait either.
    data["next", "done"], data["observation"] = (
        data["next", "done"].to(torch.uint8),
        data["observation"].double(),
    )
    data["priority_weight"] = torch.rand(data.shape)
    with HostReads() as mode:
        out = loss(data)
        (out["loss_actor"] + out["loss_qvalue"]).backward()
    assert mode.seen == []
    with HostReads() as mode:  # it would notice
        bool(out["bc"] > 0)
    assert mode.seen == ["_local_scalar_dense"]


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA")
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_it_can_be_captured_as_a_graph(make_loss, make_data, device):
    losses = [make_loss().to(device) for _ in range(2)]
    optimizers = [
        torch.optim.Adam(loss.parameters(), 1e-3, capturable=device == "cuda") for loss in losses
    ]

    def make_update(loss, optimizer):
        def update(data):
            out = loss(data)
            (out["loss_actor"] + out["loss_qvalue"]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            return out.detach()

        return update

    plain, wrapped = map(make_update, losses, optimizers)
    with _exclude_td_from_pytree():  # CudaGraphModule would do so for the whole process
        captured = CudaGraphModule(wrapped)
        for step in range(5):
            data = make_data(64, seed=step).to(device)
            torch.manual_seed(step)
            expected = plain(data.clone())
            torch.manual_seed(step)
            out = captured(data.clone())
            assert out["loss_qvalue"].isfinite()
            if device == "cpu":  # a replayed graph draws its own random numbers
                assert torch.equal(out["loss_actor"], expected["loss_actor"])
    for loss in losses:
        assert all(p.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_autocast_computes_the_same_losses_more_coarsely(make_ql, make_data, run, guidance):
    loss, data = make_ql(guidance=guidance, lmbda=0.5, deactivate_vmap=True), make_data(256)
    exact = run(loss, data.clone())
    with torch.autocast("cpu", torch.bfloat16):
        coarse = run(loss, data.clone())
    for key in ("loss_actor", "loss_qvalue"):
        assert not torch.equal(coarse[key], exact[key])
        torch.testing.assert_close(coarse[key].float(), exact[key], rtol=0.02, atol=0.0)
    (coarse["loss_actor"] + coarse["loss_qvalue"]).backward()
    assert all(p.grad.dtype == torch.float32 for p in loss.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", GUIDANCE_MODES)
def test_it_compiles_into_one_graph(out_keys, make_loss, make_data, run, guidance):
    loss, data = make_loss(guidance=guidance, lmbda=0.5), make_data()
    loss(data.clone())
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.manual_seed(2)
    out, expected = compiled(data.clone()), run(loss, data.clone())
    for key in out_keys:
        torch.testing.assert_close(out[key], expected[key])
    (out["loss_actor"] + out["loss_qvalue"]).backward()
