"""The committed figures are those of the committed raw files; what is compared is comparable."""

import json
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from benchmarks.speed import d4rl_reader, sampling, textbook, timing, update
from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def test_every_result_names_its_command_and_raw_file():
    files = [path for path in RESULTS.glob("*.json") if not path.stem.endswith("_raw")]
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert {"command", "commit", "machine", "when", "figures", "raw"} <= set(result)
        assert (RESULTS / result["raw"]).exists()


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def twins(float64):
    """The textbook's learner and our loss with equal weights, and one batch in both forms."""
    learner = textbook.TextbookDiffusionQL(5, 2, num_steps=5, width=16)
    actor = DiffusionActor(2, 5, hidden=(16,) * 3, in_keys=["observation"]).double()
    critics = [critic.double() for critic in make_qvalue_networks(5, 2, hidden=(16,) * 3)]
    # Targets of their own, so that mixing one up with its source would show.
    torch.manual_seed(1)
    for slow in (learner.actor_target, learner.critic_target):
        for parameter in slow.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    _copy(learner.actor.model, actor.module.score_network)
    for network, critic in zip((learner.critic.q1, learner.critic.q2), critics, strict=True):
        _copy(network, critic)
    loss = DiffusionQLLoss(actor, critics, lmbda=1.0, deactivate_vmap=True)
    _copy(learner.actor_target.model, _Parameters(loss.target_actor_network_params))
    stacked = loss.target_qvalue_network_params
    for index, network in enumerate((learner.critic_target.q1, learner.critic_target.q2)):
        _copy(network, _Parameters(stacked[index]))
    no = torch.zeros(32, 1, dtype=torch.bool)
    no[::3] = True
    data = TensorDict(
        {
            "observation": torch.randn(32, 5),
            "action": torch.rand(32, 2) * 2 - 1,
            "next": {
                "observation": torch.randn(32, 5),
                "reward": torch.randn(32, 1),
                "done": no,
                "terminated": no.clone(),
            },
        },
        [32],
    )
    batch = textbook.Batch(
        data["observation"],
        data["action"],
        data["next", "observation"],
        data["next", "reward"],
        1.0 - no.double(),
    )
    return learner, batch, loss, data


class _Parameters:
    """The weights and biases in a network's TensorDict, ordered as in the module: by layer."""

    def __init__(self, params):
        leaves = {".".join(key): value for key, value in params.items(True, True)}
        names = [name for name in leaves if name.endswith(("weight", "bias"))]
        names.sort(key=lambda name: (".mlp." in name, name.split(".")[-2], "bias" in name))
        self.leaves = [leaves[name] for name in names]

    def parameters(self):
        return self.leaves


def _copy(source, target):
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    for theirs, ours in pairs:
        assert theirs.shape == ours.shape
        ours.data.copy_(theirs.data)


def test_textbook_and_our_critic_loss_agree(twins):
    learner, batch, loss, data = twins
    torch.manual_seed(0)
    theirs = learner.critic_loss(batch)
    torch.manual_seed(0)
    ours, _ = loss.qvalue_loss(data)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_textbook_and_our_actor_loss_agree(twins, monkeypatch):
    learner, batch, loss, data = twins
    chosen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        ours, _ = loss.actor_loss(data)
        for choice in (0.0, 1.0):  # which critic judges is drawn by different generators
            monkeypatch.setattr("random.random", lambda choice=choice: choice)
            torch.manual_seed(seed)
            theirs = learner.actor_loss(batch)
            if torch.isclose(ours, theirs, rtol=1e-6, atol=1e-6):
                chosen.add(choice)
                break
        else:
            pytest.fail(f"seed {seed}: neither critic gives our loss {ours}")
    assert chosen == {0.0, 1.0}


def test_textbook_update_moves_networks_and_targets(twins):
    learner, batch, _, _ = twins
    learner.ema_start = 0
    modules = (learner.actor, learner.critic, learner.actor_target, learner.critic_target)
    before = [[p.clone() for p in module.parameters()] for module in modules]
    for _ in range(learner.ema_period):
        learner.update(batch)
    for module, old in zip(modules, before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), old, strict=True))


def test_alternating_measures_every_side_as_often():
    calls = {"a": 0, "b": 0}

    def side(name):
        calls[name] += 1

    times = timing.alternate(
        {name: lambda name=name: side(name) for name in calls}, repeats=3, slice_seconds=1e-4
    )
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert min(calls.values()) >= 6
    assert timing.speedup([2.0, 6.0, 4.0], [1.0, 2.0, 1.0]) == 3.0


def test_flops_are_counted_through_a_loss_module():
    weight = torch.randn(8, 4)
    assert timing.count_flops(lambda: torch.randn(2, 8) @ weight) == 2 * 2 * 8 * 4
    point = update.Point(batch=4, width=8)
    chain, one_step = (
        timing.count_flops(update.our_side(point, side)) for side in ("chain", "one_step")
    )
    assert chain > one_step > 0


@pytest.fixture
def pytree_nodes():
    """CudaGraphModule takes TensorDicts out of pytree's registry for good: put them back."""
    nodes = dict(torch.utils._pytree.SUPPORTED_NODES)
    yield
    torch.utils._pytree.SUPPORTED_NODES.update(nodes)


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA")
@pytest.mark.filterwarnings("ignore:Tensordict is registered in PyTree")
@pytest.mark.usefixtures("pytree_nodes")
def test_cuda_graph_wrapper_computes_the_same_update():
    def build(**options):
        torch.manual_seed(0)
        actor = DiffusionActor(4, 39, hidden=(8,), in_keys=["observation"])
        loss = DiffusionQLLoss(actor, make_qvalue_networks(39, 4, hidden=(8,)))
        return loss, update.make_update(loss, **options)

    results = []
    for options in ({}, {"cuda_graph": True}):
        loss, step = build(**options)
        data = update.random_transitions(4, "cpu")
        losses = [step(data)["loss_actor"] for _ in range(3)]
        assert not any(value.requires_grad for value in losses)
        results.append((losses, loss.state_dict()))
    assert results[0][0] == results[1][0]
    for key, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], value, rtol=0, atol=0)


@pytest.mark.integration
def test_update_benchmark_runs_and_plots(tmp_path):
    points = [update.Point(batch=4, width=8, num_steps=2)]
    prompts = [update.PromptPoint(prompts=count, batch=8, width=8, length=4) for count in (3, 90)]
    raw = {
        "updates": [update.measure(point, 2, slice_seconds=1e-3) for point in points],
        "prompts": [update.measure_prompts(point, 2, slice_seconds=1e-3) for point in prompts],
    }
    assert set(update.figures(raw)) == {
        "chain_eager_vs_textbook",
        "one_step_eager_vs_textbook",
        "share_of_gemm_peak",
        "prompt_overhead",
        "prompt_overhead_two_per_task",
    }
    json.dumps(raw)
    update.plot(raw, tmp_path / "update.png")
    assert (tmp_path / "update.png").stat().st_size > 0


def test_update_grids_start_at_the_base_point():
    for quick in (True, False):
        points, prompts = update.grid("cpu", quick=quick)
        assert points[0] == update.Point()
        assert prompts[0] == update.PromptPoint()
        assert len(set(points)) == len(points)
        assert len(set(prompts)) == len(prompts)


def test_sampling_benchmark_runs_and_plots(tmp_path):
    points = [
        sampling.Point(batch=4, width=8, num_steps=2),
        sampling.Point(batch=1, width=8, num_steps=2),
    ]
    raw = [sampling.measure(point, ("ddpm", "ddim"), 2, slice_seconds=1e-3) for point in points]
    assert set(sampling.figures(raw)) == {
        "actions_per_s_vs_textbook",
        "actions_per_s_vs_textbook_batch_1",
    }
    json.dumps(raw)
    sampling.plot(raw, tmp_path / "sampling.png")
    assert (tmp_path / "sampling.png").stat().st_size > 0


def test_reader_benchmark_runs(tmp_path):
    path = tmp_path / "made.hdf5"
    d4rl_reader.write_file(path, 5000, compression="gzip")
    root = tmp_path / "root"
    cold = d4rl_reader.time_cold(str(path))
    raw = {
        "small": {
            "seconds": {"cold": [cold], "warm": [d4rl_reader.time_warm(str(path), str(root))]},
            "sample_seconds": {"memory": [0.5], "mapped": [0.25]},
        },
        "large": d4rl_reader.convert_large(str(path), str(root), "", seconds=0.01)
        | {"file_bytes": path.stat().st_size},
    }
    figures = d4rl_reader.figures(raw)
    assert raw["large"]["rows"] == 5000
    assert figures["large_peak_anonymous_mb"] > 10
    assert figures["mapped_samples_per_s"] == 4.0
    assert figures["large_samples_per_s"] > 0
    assert "large_memory_limit_mb" not in figures
    json.dumps(raw)


def test_reader_figures_follow_from_the_kept_measurements():
    kept = json.loads((RESULTS / "d4rl_reader.json").read_text())
    raw = json.loads((RESULTS / kept["raw"]).read_text())
    assert kept["figures"] == pytest.approx(d4rl_reader.figures(raw))
