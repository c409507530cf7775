"""What may go wrong in the middle of a training, and what becomes of it."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torchrl.record.loggers import Logger

from llmdpd_torchrl.trainers import find_checkpoint
from llmdpd_torchrl.trainers.guard import FiniteGuard
from llmdpd_torchrl.trainers.metrics_file import MetricsFile, read_metrics
from llmdpd_torchrl.utils.errors import DataError, DivergenceError
from tests.reliability.harness import small_files
from tests.reliability.short_training import build, train

UPDATES = 100


# --- numbers that are none -------------------------------------------------------------------


def poisoned(folder, at, **options):
    """A training whose batch of one update has a reward that is not a number."""
    trainer, _ = build(folder, updates=UPDATES, every=20, **options)
    trainer.guard.folder = folder
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


def test_the_update_and_its_rows_are_named_and_kept(tmp_path):
    trainer, seen = poisoned(tmp_path, at=47)
    with pytest.raises(DivergenceError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "\n" not in message
    assert "loss_qvalue is not finite at update 47, made of the buffer's rows" in message
    assert "checkpoint-000000000040" in message
    folder = tmp_path / "divergence-47"
    about = json.loads((folder / "about.json").read_text())
    assert about["rows"] == seen["rows"]
    assert about["values"]["loss_qvalue"] == "nan"
    batch = load_file(folder / "batch.safetensors")
    assert torch.equal(batch["index"], torch.tensor(seen["rows"]))
    # The networks did not move any more, though thirteen more updates of the round were made.
    networks = load_file(folder / "networks.safetensors")
    assert trainer.updates_made == 60
    for name, value in networks.items():
        if not name.startswith("target_"):
            assert torch.equal(value, seen["networks"][name]), name


def test_nothing_broken_is_saved_or_logged_and_it_can_be_continued(tmp_path):
    trainer, _ = poisoned(tmp_path / "a", at=47)
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


def test_watching_does_not_change_a_training(tmp_path, monkeypatch):
    watched = train(tmp_path / "a", updates=40)
    monkeypatch.setattr(FiniteGuard, "watch", lambda self, values: None)
    alone = train(tmp_path / "b", updates=40)
    theirs = alone.loss_module.state_dict()
    for name, value in watched.loss_module.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_a_long_round_is_looked_at_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("llmdpd_torchrl.trainers.guard._MOST", 10)
    trainer, _ = poisoned(tmp_path, at=3)
    with pytest.raises(DivergenceError, match="update 3,"):
        trainer.train()
    assert trainer.updates_made == 10


def test_a_batch_that_the_loss_refuses_is_named_and_kept(tmp_path):
    trainer, seen = poisoned(tmp_path, at=7)

    def widen(batch):
        if trainer.updates_made == 7:
            batch["next", "reward"] = batch["next", "reward"].expand(-1, 2).contiguous()
        return batch

    trainer.register_op("process_optim_batch", widen)
    with pytest.raises(DataError, match=r"\('next', 'reward'\) has shape \[") as stopped:
        trainer.train()
    assert f"(update 7, made of the buffer's rows {seen['rows'][0]}, " in str(stopped.value)
    batch = load_file(tmp_path / "divergence-7" / "batch.safetensors")
    assert batch["next.reward"].shape[1] == 2


def test_a_mistake_of_the_settings_keeps_its_words(tmp_path):
    trainer, _ = build(tmp_path, updates=UPDATES)
    trainer.register_op("process_optim_batch", lambda batch: batch.exclude("action"))
    with pytest.raises(DataError, match="the batch has no 'action'") as stopped:
        trainer.train()
    assert "rows" not in str(stopped.value)


def test_where_nothing_can_be_kept_the_error_says_so(tmp_path):
    trainer, _ = poisoned(tmp_path, at=7)
    (tmp_path / "file").write_text("")
    trainer.guard.folder = tmp_path / "file"
    with pytest.raises(DivergenceError, match="could not be kept"):
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

    log_scalar = log_video = log_hparams = log_histogram = log_str = log_metrics

    def __repr__(self):
        return "Failing()"


def test_a_logger_that_dies_is_said_once_and_left_out(tmp_path, capsys):
    trainer, _ = build(tmp_path, updates=UPDATES)
    trainer.logger.loggers.append(Failing(tmp_path, after=3))
    trainer.train()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "Failing failed (ConnectionError: the network): going on without it" in lines[0]
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
    assert len(metrics.pending) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    metrics.write(4, {"loss": 0.5})
    assert metrics.pending == []
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
    starts = ["can not write", "can not save to", "can not save the best policy"]
    assert all(any(line.startswith(f"note: {start}") for start in starts) for line in lines)
    (unsaved,) = [line for line in lines if line.startswith("note: can not save to")]
    assert "checkpoint-000000000020 is kept" in unsaved
    assert len([line for line in lines if line.startswith("note: can not write")]) == 1
    train(tmp_path / "b", updates=UPDATES, every=20)
    expected = (tmp_path / "b" / "metrics.csv").read_bytes()
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == expected
    assert find_checkpoint(tmp_path / "a" / "checkpoints").step == UPDATES


def test_rows_that_wait_are_in_the_checkpoint(tmp_path):
    trainer, _ = build(tmp_path, updates=40, every=20)
    csv = trainer.logger.loggers[0] if hasattr(trainer.logger, "loggers") else trainer.logger
    csv.experiment.pending.append((40, {"late": 1.0}))
    state = trainer.logger.state_dict()
    csv.experiment.pending.clear()
    trainer.logger.load_state_dict(state)
    assert read_metrics(tmp_path / "metrics.csv")[1]["late"].tolist() == [1.0]
