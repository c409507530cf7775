"""A training that was stopped and continued is the training that was not, bit for bit."""

import errno
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from torchrl.checkpoint import Checkpoint
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from llmdpd_torchrl.evaluation.hook import EvaluationHook
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers import (
    Checkpointing,
    Interrupted,
    OfflineTrainer,
    find_checkpoint,
    handle_signals,
    resume,
)
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from tests.reliability import harness, short_training
from tests.reliability.short_training import IDENTITY, build, train

UPDATES = 90  # of the training that nothing disturbed, see conftest.py


def stop_at(folder, updates, **options):
    """A training that is asked to stop after so many updates."""
    trainer, _ = build(folder, updates=UPDATES, every=10, **options)

    def stop():
        if trainer.collected_frames >= updates:
            trainer.request_stop()

    trainer._post_steps_ops.insert(0, (stop, {}))
    trainer.train()
    return trainer


def scramble():
    """Another process has other random numbers."""
    torch.manual_seed(random.randrange(10**6))
    np.random.seed(random.randrange(10**6))  # noqa: NPY002 (the global one)
    random.seed()


@pytest.mark.parametrize("updates", [10, 30, 80])
def test_stopped_and_continued_is_never_stopped(uninterrupted, tmp_path, updates):
    # Between two log entries, and between two evaluations: averages are in flight.
    stop_at(tmp_path, updates)
    scramble()
    train(tmp_path, updates=UPDATES, every=10)
    assert harness.differences(uninterrupted, tmp_path) == []


def test_what_was_made_after_the_checkpoint_is_made_again(uninterrupted, tmp_path):
    stop_at(tmp_path, 70, keep=3)
    for step in (70, 60):
        shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint-{step:012d}", ignore_errors=True)
    assert find_checkpoint(tmp_path / "checkpoints").step < 60
    scramble()
    train(tmp_path, updates=UPDATES, every=10)
    assert harness.differences(uninterrupted, tmp_path) == []


def test_a_finished_training_is_not_trained_further(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    trainer = train(tmp_path, updates=UPDATES, every=10)
    assert trainer.collected_frames == UPDATES
    assert harness.differences(uninterrupted, tmp_path) == []


def test_parameters_stay_shared_with_the_policy(tmp_path):
    stop_at(tmp_path, 20)
    saved = find_checkpoint(tmp_path / "checkpoints", IDENTITY)
    trainer, hook = build(tmp_path, updates=UPDATES, every=10, saved=saved)
    resume(trainer, saved)
    ours = dict(hook.policy.actor.named_parameters())
    theirs = trainer.loss_module.actor_network_params.flatten_keys(".")
    for name, parameter in ours.items():
        assert parameter.data_ptr() == theirs[name].data_ptr()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_checkpoints_and_the_best_policy_are_kept(tmp_path, keep):
    trainer = stop_at(tmp_path, 90, keep=keep)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:012d}" for step in (80, 90)[-keep:]]
    history = trainer._modules["interval_evaluation"].history
    best = max(history, key=lambda row: (row["eval/success_seen"], row["updates"]))["updates"]
    assert LLMDPDPolicy.from_pretrained(tmp_path / "best").info["updates"] == best


def test_a_checkpoint_from_after_the_resumed_one_is_removed_at_the_next_save(tmp_path):
    stop_at(tmp_path, 40)
    newest = tmp_path / "checkpoints" / f"checkpoint-{40:012d}"
    (newest / "manifest.json").write_text("{}")  # damaged
    saved = find_checkpoint(tmp_path / "checkpoints")
    assert saved.step == 30
    trainer, _ = build(tmp_path, updates=UPDATES, every=10, saved=saved, log_every=20)
    resume(trainer, saved)
    again = Checkpointing(tmp_path / "checkpoints", every=10, identity=IDENTITY)
    again.register(trainer)
    assert again.save()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert names == [f"checkpoint-{30:012d}"]


def test_the_bar_goes_on_where_it_was(tmp_path, capsys):
    stop_at(tmp_path, 40)
    saved = find_checkpoint(tmp_path / "checkpoints")
    trainer, _ = build(tmp_path, updates=UPDATES, every=10, saved=saved)
    trainer.progress_bar = True
    resume(trainer, saved)
    trainer.train()
    shown = capsys.readouterr().err
    assert "40/90" in shown
    assert "90/90" in shown


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(uninterrupted, tmp_path, capsys, number, code):
    trainer, _ = build(tmp_path, updates=UPDATES, every=50)
    before = signal.getsignal(number)
    count = 0

    def send():
        nonlocal count
        count += 1
        if count == 35:
            signal.raise_signal(number)

    trainer.register_op("post_optim", send)
    with pytest.raises(Interrupted) as stopped, handle_signals(trainer):
        trainer.train()
    assert stopped.value.code == code
    assert signal.getsignal(number) is before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "stopped after 40 updates, saved as" in lines[0]
    assert find_checkpoint(tmp_path / "checkpoints").step == 40
    train(tmp_path, updates=UPDATES, every=50)
    assert harness.differences(uninterrupted, tmp_path) == []


def test_a_second_signal_does_not_wait(tmp_path):
    trainer, _ = build(tmp_path, updates=UPDATES, every=50)

    def send():
        signal.raise_signal(signal.SIGINT)

    trainer.register_op("post_optim", send)
    # Python leaves SIGINT alone where it is ignored, as in a shell's background jobs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), handle_signals(trainer):
            trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)


# --- what cannot be resumed -------------------------------------------------------------------


def test_another_training_is_refused_before_anything_is_changed(tmp_path):
    stop_at(tmp_path, 20)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(ConfigError, match="data_hash is 'other' now and was 'synthetic'"):
        find_checkpoint(tmp_path / "checkpoints", {"data_hash": "other"})
    assert (tmp_path / "metrics.csv").read_bytes() == before
    saved = find_checkpoint(tmp_path / "checkpoints")
    trainer, _ = build(tmp_path, updates=UPDATES + 20, every=10, saved=saved)
    with pytest.raises(ConfigError, match="total_updates is 110 now and was 90"):
        resume(trainer, saved)


def test_another_network_is_refused_in_one_line(tmp_path, monkeypatch):
    stop_at(tmp_path, 20)
    saved = find_checkpoint(tmp_path / "checkpoints")
    monkeypatch.setattr(short_training, "TEXT", 9)
    trainer, _ = build(tmp_path, updates=UPDATES, every=10, saved=saved)
    with pytest.raises(ConfigError, match="does not fit this training") as refused:
        resume(trainer, saved)
    assert "\n" not in str(refused.value)
    assert "[8], this training asks for [9]" in str(refused.value)


def test_a_part_that_was_not_saved_is_named(tmp_path):
    stop_at(tmp_path, 20)
    saved = find_checkpoint(tmp_path / "checkpoints")
    trainer, hook = build(tmp_path, updates=UPDATES, every=10, saved=saved)
    trainer.register_module("another", EvaluationHook(hook.evaluator, hook.policy, every=20,
                                                          trained_tasks=[]))  # fmt: skip
    with pytest.raises(ConfigError, match="'another'"):
        resume(trainer, saved)


def test_a_buffer_with_another_source_of_chance_is_refused(tmp_path):
    stop_at(tmp_path, 20)
    saved = find_checkpoint(tmp_path / "checkpoints")
    trainer, _ = build(tmp_path, updates=UPDATES, every=10, saved=saved)
    trainer._modules["batches"].replay_buffer.set_rng(None)
    with pytest.raises(ConfigError, match="generator of its own"):
        resume(trainer, saved)


def test_batches_drawn_ahead_of_time_are_refused(tmp_path):
    trainer, _ = build(tmp_path, updates=UPDATES)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(9), batch_size=3, prefetch=2)
    ahead = OfflineTrainer(trainer.loss_module, buffer, total_updates=100, progress_bar=False)
    with pytest.raises(ConfigError, match="prefetch=None"):
        Checkpointing(tmp_path / "checkpoints", every=100).register(ahead)


def test_nothing_saved_is_no_error(tmp_path):
    build(tmp_path, updates=UPDATES, every=10)
    assert find_checkpoint(tmp_path / "nowhere") is None
    assert find_checkpoint(tmp_path / "checkpoints") is None


def test_no_complete_checkpoint_is_an_error(tmp_path, capsys):
    stop_at(tmp_path, 20)
    for path in (tmp_path / "checkpoints").glob("*/checksums.sha256"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 checkpoints is complete"):
        find_checkpoint(tmp_path / "checkpoints")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_lost_rows_of_the_metrics_are_said(tmp_path, capsys):
    stop_at(tmp_path, 40)
    (tmp_path / "metrics.csv").unlink()
    train(tmp_path, updates=UPDATES, every=10)
    assert "rows before it are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 5}, r"multiple of trainer\.log_every=20"),
        ({"keep": 0}, "keep is 0"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, updates=UPDATES, **options)


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the checkpoint folder"):
        Checkpointing(tmp_path / "file" / "checkpoints")


def test_a_folder_belongs_to_one_training(tmp_path):
    first, _ = build(tmp_path, updates=UPDATES, logger="none")
    second, _ = build(tmp_path, updates=UPDATES, logger="none")
    caught = []

    def train_second():
        with pytest.raises(ConfigError, match="another training saves into") as error:
            second.train()
        caught.append(error)
        first.request_stop()

    first.register_op("post_steps", train_second)
    first.train()
    assert len(caught) == 1
    second.train()  # now that the first has ended


def test_a_state_that_can_not_be_saved_is_named_at_once(tmp_path):
    trainer, hook = build(tmp_path, updates=UPDATES)
    hook.history.append({"updates": object()})
    with pytest.raises(TypeError, match=r"\['interval_evaluation'\]\['history'\]\[0\]"):
        trainer.train()
    assert trainer.collected_frames == 0


# --- a disk that is full ---------------------------------------------------------------------


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, capsys, monkeypatch):
    save = Checkpoint.save
    broken = range(20, 61, 10)

    def fill(self, path, **options):
        save(self, path, **options)
        if any(f"{step:012d}" in path.name for step in broken):
            raise OSError(errno.ENOSPC, "No space left on device")
        return path

    monkeypatch.setattr(Checkpoint, "save", fill)
    trainer = stop_at(tmp_path, UPDATES, keep=1)
    assert trainer.collected_frames == UPDATES
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "checkpoint-000000000010 is kept" in lines[0]
    assert not list((tmp_path / "checkpoints").glob(".*checkpoint*"))
    assert trainer.last_checkpoint.name.endswith(f"{UPDATES:012d}")


def test_the_last_good_checkpoint_outlives_a_full_disk(tmp_path, monkeypatch):
    stop_at(tmp_path, 30, keep=1)

    def fill(self, path, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoint, "save", fill)
    train(tmp_path, updates=UPDATES, every=10)
    assert find_checkpoint(tmp_path / "checkpoints").step == 30
