import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import TD3BCLoss

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.trainers import (
    Checkpointing,
    OfflineOptimizationStepper,
    OfflineTrainer,
    TargetUpdater,
    UpdateSchedule,
    find_checkpoint,
    make_logger,
    resume,
)
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_checksums


def make_buffer(rows=64):
    torch.manual_seed(0)
    flags = torch.zeros(rows, 1, dtype=torch.bool)
    data = TensorDict(
        {
            "observation": torch.randn(rows, 3),
            "action": torch.rand(rows, 2) * 2 - 1,
            "next": {
                "observation": torch.randn(rows, 3),
                "reward": torch.randn(rows, 1),
                "terminated": flags,
                "done": flags,
            },
        },
        [rows],
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(rows), batch_size=16)
    buffer.extend(data)
    return buffer


def make_loss():
    torch.manual_seed(1)
    actor = DiffusionActor(2, 3, hidden=(16,), in_keys=["observation"])
    return DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(16,)))


def train(loss, total_updates, **kwargs):
    trainer = OfflineTrainer(
        loss, make_buffer(), total_updates=total_updates, progress_bar=False, **kwargs
    )
    trainer.train()
    return trainer


def test_it_makes_so_many_updates_and_logs_their_means(tmp_path):
    logger = make_logger("csv", tmp_path, name="run", config={})
    trainer = train(make_loss(), 60, logger=logger, log_every=20)
    assert trainer.collected_frames == trainer._optim_count == 60
    assert trainer.target_updater.counter == 60
    steps, metrics = read_metrics(tmp_path / "metrics.csv")
    assert steps.tolist() == [20, 40, 60]
    assert metrics["train/bc"][-1] < metrics["train/bc"][0]
    assert {"train/loss_qvalue", "train/grad_norm_actor_network"} <= set(metrics)


def test_an_interval_that_does_not_divide_the_updates(tmp_path):
    logger = make_logger("csv", tmp_path, name="run", config={})
    train(make_loss(), 50, logger=logger, log_every=20)
    assert read_metrics(tmp_path / "metrics.csv")[0].tolist() == [20, 40, 50]


def test_a_run_repeats():
    def run():
        loss = make_loss()
        torch.manual_seed(2)
        train(loss, 10)
        return loss.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("threads", "found"), [(1, 1), (3, 3), (None, 2)])
def test_threads_are_limited_while_it_trains(threads, found):
    used = []
    loss = make_loss()
    loss.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(loss, 2, threads=threads)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(used) == {found}


@pytest.mark.integration  # compiling takes a minute
def test_a_compiled_loss_trains_alike(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config, "fallback_random", True)  # the random numbers of the eager loss

    def run(compile):
        loss = make_loss()
        torch.manual_seed(2)
        train(loss, 10, compile=compile, stepper=OfflineOptimizationStepper(loss))
        return loss.state_dict()

    eager, compiled = run("off"), run("default")
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_a_loss_that_cannot_be_compiled_trains_as_it_is(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        def call(batch):
            raise RuntimeError("there is no C++ compiler")

        return call

    before = make_loss().state_dict()
    monkeypatch.setattr(torch, "compile", refuse)
    loss = make_loss()
    train(loss, 3, compile="default")
    message = "the loss is not compiled (there is no C++ compiler): continuing without"
    assert capsys.readouterr().err.count(message) == 1
    assert any((loss.state_dict()[key] != value).any() for key, value in before.items())


def test_a_mode_of_compiling_that_there_is_not():
    with pytest.raises(ConfigError, match="compile is 'fast': use off, default, max-autotune"):
        train(make_loss(), 1, compile="fast")


def test_the_learning_rate_falls_to_zero():
    loss = make_loss()
    stepper = OfflineOptimizationStepper(loss, learning_rate=1e-3, total_updates=10)
    train(loss, 10, stepper=stepper)
    assert float(stepper.optimizer.param_groups[0]["lr"]) == pytest.approx(0.0, abs=1e-9)


def test_gradients_are_clipped_per_network():
    loss = make_loss()
    stepper = OfflineOptimizationStepper(loss, max_grad_norm=1e-3)
    assert set(stepper.groups) == {"actor_network", "qvalue_network"}
    norms = []
    step = stepper.optimizer.step

    def spy():
        for parameters in stepper.groups.values():
            norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        step()

    stepper.optimizer.step = spy
    train(loss, 1, stepper=stepper)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_state_round_trip():
    loss = make_loss()
    stepper = OfflineOptimizationStepper(loss, total_updates=20)
    train(loss, 5, stepper=stepper)
    state = copy.deepcopy(stepper.state_dict())
    other = OfflineOptimizationStepper(make_loss(), total_updates=20)
    other.load_state_dict(state)
    assert other.scheduler.last_epoch == 5
    moments = [s["exp_avg"] for s in other.optimizer.state_dict()["state"].values()]
    assert any(moment.abs().sum() > 0 for moment in moments)


def test_a_loss_that_is_not_finite_stops_the_training():
    loss = make_loss()
    next(loss.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss_actor is not finite at update 1,"):
        train(loss, 10, log_every=5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OfflineTrainer(make_loss(), make_buffer(), total_updates=0), "updates is 0"),
        (lambda: OfflineOptimizationStepper(make_loss(), learning_rate=0.0), "rate is 0"),
        (
            lambda: OfflineOptimizationStepper(make_loss(), max_grad_norm=-1.0),
            "norm is -1",
        ),
        (lambda: train(make_loss(), 2, threads=0), "threads is 0"),
    ],
)
def test_wrong_numbers(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


# --- other losses and samplers ---------------------------------------------------------------


def test_it_trains_a_loss_of_torchrl_whose_output_has_a_number_per_row(tmp_path):
    actor = TensorDictModule(MLP(in_features=3, out_features=2), ["observation"], ["action"])
    critic = ValueOperator(MLP(in_features=5, out_features=1), in_keys=["observation", "action"])
    loss = TD3BCLoss(actor, critic, bounds=(-1, 1))
    schedules = {name: UpdateSchedule(0.005) for name in ("actor_network", "qvalue_network")}
    logger = make_logger("csv", tmp_path, name="run", config={})
    train(loss, 4, target_updater=TargetUpdater(loss, schedules), logger=logger, log_every=2)
    steps, metrics = read_metrics(tmp_path / "metrics.csv")
    assert steps.tolist() == [2, 4]
    assert "train/loss_qvalue" in metrics


def test_priorities_go_back_to_the_buffer():
    updated = []

    class Counting(TensorDictReplayBuffer):
        def update_tensordict_priority(self, data):
            updated.append(data["index"].shape)

    buffer = Counting(storage=LazyTensorStorage(64), batch_size=16)
    buffer.extend(make_buffer()[:])
    OfflineTrainer(make_loss(), buffer, total_updates=3, progress_bar=False).train()
    assert updated == [(16,)] * 3


# --- devices ---------------------------------------------------------------------------------


def test_a_stepper_of_another_device_is_refused():
    loss = make_loss()
    stepper = OfflineOptimizationStepper(loss)
    with pytest.raises(ConfigError, match="the loss is on cpu, and device is meta"):
        OfflineTrainer(loss, make_buffer(), total_updates=1, stepper=stepper, device="meta")


def trained_on(device, folder, updates, total=50):
    """A training that is asked to stop after so many updates, or continued from there."""
    buffer = make_buffer()
    buffer.set_rng(torch.Generator().manual_seed(3))
    trainer = OfflineTrainer(
        make_loss(), buffer, total_updates=total, log_every=20, progress_bar=False, device=device
    )
    Checkpointing(folder, every=10).register(trainer)
    saved = find_checkpoint(folder)
    if saved is not None:
        resume(trainer, saved)
    trainer.register_op(
        "post_steps_log",
        lambda _: trainer.request_stop() if trainer.collected_frames >= updates else None,
    )
    rows = []
    trainer.register_op("process_optim_batch", lambda batch: rows.append(batch["index"]) or batch)
    trainer.train()
    return trainer, saved, torch.stack(rows).cpu()


def test_the_random_state_of_missing_gpus_is_left_out(tmp_path, monkeypatch):
    trained_on("cpu", tmp_path, 30)  # the means of ten updates are not logged yet
    (newest,) = tmp_path.glob("checkpoint-*30")
    path = newest / "components" / "0000-random" / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "torch_cuda": [torch.get_rng_state()] * 2}, path)
    write_checksums(newest)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _, saved, _ = trained_on("cpu", tmp_path, 50)
    assert saved.step == 30


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_checkpoint_continues_on_another_device(tmp_path, first, second):
    _, _, expected = trained_on("cpu", tmp_path / "whole", 50)
    _, _, before = trained_on(first, tmp_path / "parts", 30)
    trainer, saved, after = trained_on(second, tmp_path / "parts", 50)
    assert saved.step == 30
    assert next(trainer.loss_module.parameters()).device.type == second
    assert torch.equal(torch.cat([before, after]), expected)  # one order of rows on every device
    assert all(value.isfinite().all() for value in trainer.loss_module.state_dict().values())


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [True, False])
def test_nothing_waits_for_the_device_between_two_log_entries(tmp_path, monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    trainer = OfflineTrainer(
        make_loss(), make_buffer(), total_updates=20, log_every=20, progress_bar=False,
        device="cuda",
    )  # fmt: skip

    def watch(batch):
        assert batch.device.type == "cuda"
        torch.cuda.set_sync_debug_mode("error" if trainer.updates_made < 20 else "default")
        return batch

    trainer.register_op("process_optim_batch", watch)
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.collected_frames == 20


def test_a_mean_beyond_its_limits_is_reported_once(tmp_path, capsys):
    logger = make_logger(kind="csv", directory=tmp_path, name="run", config={})
    train(make_loss(), 6, logger=logger, log_every=2, limits={"q_value": (50.0, 60.0)})
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "q_value" in line]
    assert line.startswith("note: update 2: q_value is ")
    assert line.endswith("beyond the 50 to 60 that the rewards of the data can sum to")
