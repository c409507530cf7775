"""What may go wrong in the middle of a training, and what becomes of it."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torchrl.record.loggers import Logger

from llmdpd_torchrl.trainers import Checkpointing, SavedTraining, find_checkpoint, offline
from llmdpd_torchrl.trainers.metrics_file import MetricsFile, read_metrics
from llmdpd_torchrl.utils.errors import DataError, DivergenceError
from tests.reliability.harness import small_files
from tests.reliability.short_training import build, train

UPDATES = 100


# --- numbers that are none -------------------------------------------------------------------


def poisoned(folder, at, failures=None, check_finite=None, **options):
    """A training whose batch of one update has a reward that is not a number."""
    trainer_options = {"failures": failures or folder, "check_finite": check_finite}
    trainer, _ = build(
        folder, updates=UPDATES, every=20, trainer_options=trainer_options, **options
    )
    seen = {}

    def poison(batch):
        if trainer.updates_made == at:
            batch["next", "reward"][3] = torch.nan
            seen["rows"] = batch["index"].tolist()
            state = trainer.loss_module.state_dict()
            seen["networks"] = {name: value.clone() for name, value in state.items()}
        return batch

    trainer.register_op("process_optim_batch", poison)
    return trainer, seen


# On a GPU it looks when it logs, so as not to wait for the device at each update.
@pytest.mark.parametrize(("check_finite", "stops_at"), [(None, 47), ("update", 47), ("log", 60)])
def test_the_update_and_its_rows_are_named_and_kept(tmp_path, check_finite, stops_at):
    trainer, seen = poisoned(tmp_path, at=47, check_finite=check_finite)
    with pytest.raises(DivergenceError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "\n" not in message
    first = ", ".join(map(str, seen["rows"][:8]))
    assert "loss_qvalue is not finite at update 47, " in message
    assert f"buffer rows {first}, ... (16 in all)" in message
    assert "checkpoint-000000000040" in message
    folder = tmp_path / "divergence-47"
    about = json.loads((folder / "about.json").read_text())
    assert about["rows"] == seen["rows"]
    assert about["values"]["loss_qvalue"] == "nan"
    batch = load_file(folder / "batch.safetensors")
    assert torch.equal(batch["index"], torch.tensor(seen["rows"]))
    # The networks did not change, though up to thirteen more updates of the round were made.
    networks = load_file(folder / "networks.safetensors")
    assert trainer.updates_made == stops_at
    for name, value in networks.items():
        if not name.startswith("target_"):
            assert torch.equal(value, seen["networks"][name]), name


@pytest.mark.parametrize("check_finite", ["update", "log"])
def test_nothing_broken_is_saved_or_logged_and_it_can_be_continued(tmp_path, check_finite):
    trainer, _ = poisoned(tmp_path / "a", at=47, check_finite=check_finite)
    with pytest.raises(DivergenceError):
        trainer.train()
    assert find_checkpoint(tmp_path / "a" / "checkpoints").step == 40
    steps, columns = read_metrics(tmp_path / "a" / "metrics.csv")
    assert steps.tolist() == [20, 40]
    assert all((values == values).any() for values in columns.values())
    continued = train(tmp_path / "a", updates=UPDATES, every=20)
    never = train(tmp_path / "b", updates=UPDATES, every=20)
    theirs = never.loss_module.state_dict()
    for name, value in continued.loss_module.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_looking_does_not_change_a_training(tmp_path):
    at_updates = train(tmp_path / "a", updates=40, trainer_options={"check_finite": "update"})
    at_logs = train(tmp_path / "b", updates=40, trainer_options={"check_finite": "log"})
    theirs = at_logs.loss_module.state_dict()
    for name, value in at_updates.loss_module.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_a_checkpoint_between_two_log_entries_looks_first(tmp_path):
    trainer, _ = poisoned(tmp_path, at=43, check_finite="log", log_every=20)
    Checkpointing(tmp_path / "more", every=20).register(trainer)

    def stop():
        if trainer.collected_frames == 60:
            trainer.check_finite()

    trainer.register_op("pre_steps_log", lambda batch: stop())
    with pytest.raises(DivergenceError, match="update 43,"):
        trainer.train()
    assert find_checkpoint(tmp_path / "more").step == 40


@pytest.mark.parametrize("check_finite", ["update", "log"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_loss_that_is_not_finite_is_noticed_where_gradients_are(
    tmp_path, check_finite, max_grad_norm
):
    trainer, _ = build(tmp_path, updates=UPDATES, trainer_options={"check_finite": check_finite})
    trainer.optimization_stepper.max_grad_norm = max_grad_norm
    compute = trainer.compute_loss

    def infinite(batch):
        losses = compute(batch)
        if trainer.updates_made == 3:  # a constant has no gradient
            losses["loss_qvalue"] = losses["loss_qvalue"] + torch.inf
        return losses

    trainer.compute_loss = infinite
    with pytest.raises(DivergenceError, match="loss_qvalue is not finite at update 3,"):
        trainer.train()


def test_batches_of_other_sizes_are_looked_at_apart(tmp_path):
    trainer, seen = poisoned(tmp_path, at=7, check_finite="log")
    trainer.register_op(
        "process_optim_batch", lambda batch: batch[:9] if trainer.updates_made == 9 else batch
    )
    with pytest.raises(DivergenceError, match="update 7,"):
        trainer.train()
    about = json.loads((tmp_path / "divergence-7" / "about.json").read_text())
    assert about["rows"] == seen["rows"]


def test_long_intervals_are_looked_at_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "MOST_REMEMBERED", 5)
    trainer, _ = poisoned(tmp_path, at=7, check_finite="log")
    with pytest.raises(DivergenceError, match="update 7,"):
        trainer.train()
    assert trainer.updates_made == 11  # five are looked at after the fifth, and after the tenth


def test_a_mistake_of_the_settings_keeps_its_words(tmp_path):
    trainer, _ = build(tmp_path, updates=UPDATES)
    trainer.register_op("process_optim_batch", lambda batch: batch.exclude("action"))
    with pytest.raises(DataError, match="the batch has no 'action'") as stopped:
        trainer.train()
    assert "rows" not in str(stopped.value)


def test_where_nothing_can_be_kept_the_error_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    trainer, _ = poisoned(tmp_path, at=7, failures=tmp_path / "file")
    with pytest.raises(DivergenceError, match="could not be saved"):
        trainer.train()


# --- loggers and disks -----------------------------------------------------------------------


class Failing(Logger):
    """A logger whose service is gone after some calls."""

    def __init__(self, folder, after):
        self.left = after
        super().__init__("failing", str(folder))

    def _create_experiment(self):
        return None

    def log_metrics(self, metrics, step=None, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the network\nis gone")
        return metrics

    log_scalar = log_video = log_hparams = log_histogram = log_metrics

    def __repr__(self):
        return "Failing()"


def test_a_logger_that_dies_is_said_once_and_left_out(tmp_path, capsys):
    trainer, _ = build(tmp_path, updates=UPDATES)
    trainer.logger.loggers.append(Failing(tmp_path, after=3))
    trainer.train()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "Failing failed (ConnectionError: the network): continuing without it" in lines[0]
    assert read_metrics(tmp_path / "metrics.csv")[0].tolist() == [20, 40, 60, 80, 100]
    # It is not in the checkpoint, and another training need not have it back.
    train(tmp_path, updates=UPDATES)


def test_rows_wait_until_the_disk_has_room(tmp_path, capsys):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.write(1, {"loss": 0.125})
    with small_files(20):
        for step in (2, 3):
            metrics.write(step, {"loss": 0.125})
        metrics.write(3, {"other": 1.0})
    assert metrics.pending == {2, 3}
    assert len(capsys.readouterr().err.splitlines()) == 1
    metrics.write(4, {"loss": 0.5})
    assert not metrics.pending
    text = "step,loss,other\n1,0.125,\n2,0.125,\n3,0.125,1.0\n4,0.5,\n"
    assert (tmp_path / "metrics.csv").read_text() == text


def test_a_training_outlives_a_full_disk_and_loses_nothing(tmp_path, capsys):
    trainer, _ = build(tmp_path / "a", updates=UPDATES, every=20, logger="csv")
    limit = contextlib.ExitStack()

    def fill():
        if trainer.updates_made == 25:
            limit.enter_context(small_files(400))
        if trainer.updates_made == 85:
            limit.close()

    trainer.register_op("post_optim", fill)
    trainer.train()
    lines = capsys.readouterr().err.splitlines()
    starts = ["cannot write", "cannot save to", "cannot save the best policy"]
    assert all(any(line.startswith(f"note: {start}") for start in starts) for line in lines)
    (unsaved,) = [line for line in lines if line.startswith("note: cannot save to")]
    assert "checkpoint-000000000020 is kept" in unsaved
    assert len([line for line in lines if line.startswith("note: cannot write")]) == 1
    train(tmp_path / "b", updates=UPDATES, every=20)
    expected = (tmp_path / "b" / "metrics.csv").read_bytes()
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == expected
    assert find_checkpoint(tmp_path / "a" / "checkpoints").step == UPDATES


def test_rows_that_wait_are_in_the_checkpoint(tmp_path, capsys):
    trainer, _ = build(tmp_path, updates=40, every=20)
    trainer.logger.log_scalar("early", 0.125, step=20)
    before = (tmp_path / "metrics.csv").read_bytes()
    with small_files(20):
        trainer.logger.log_scalar("late", 1.0, step=40)
        state = trainer.logger.state_dict()
    (tmp_path / "metrics.csv").write_bytes(before)
    again, _ = build(tmp_path, updates=40, every=20, saved=SavedTraining(tmp_path, 40, {}))
    again.logger.load_state_dict(state)
    steps, columns = read_metrics(tmp_path / "metrics.csv")
    assert steps.tolist() == [20, 40]
    assert columns["late"].tolist()[1:] == [1.0]
    assert "cannot write" in capsys.readouterr().err
