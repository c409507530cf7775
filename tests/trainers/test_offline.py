import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, OfflineTrainer, make_logger
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import ConfigError


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
    ],
)
def test_wrong_numbers(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
