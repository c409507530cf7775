"""The benchmark of unseen tasks: what it would run, and the figures it takes from kept episodes."""

import argparse
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import unseen
from benchmarks.studies.episodes import read_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.tasks.splits import make_split

TASKS = ("door-lock-v3", "box-close-v3")


def keep(folder, name, successes):
    """Episodes with the given successes, a row a task."""
    names = [field.name for field in dataclasses.fields(EpisodeResult)]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for task, goals in zip(TASKS, successes, strict=True):
            for goal, success in enumerate(goals):
                episode = EpisodeResult(task, goal, bool(success), bool(success), 1.5, 20)
                writer.writerow([getattr(episode, name) for name in names])


def test_every_policy_is_evaluated_under_every_control():
    found = unseen.arms(["tokens", "retrieve_and_play"], [0, 1])
    trained = [arm for arm in found if arm.variant == "tokens"]
    assert {arm.seed for arm in trained} == {0, 1}
    assert {arm.control for arm in trained} == {*unseen.CONTROLS, *unseen.DEMONSTRATIONS}
    baseline = [arm for arm in found if arm.variant == "retrieve_and_play"]
    shown = {arm.control for arm in baseline if arm.group == "unseen"}
    assert shown == {"trajectory", "wrong", *unseen.DEMONSTRATIONS}
    pooled = unseen.arms(["pooled"], [0])
    shown = {arm.control for arm in pooled if arm.group == "seen"}
    assert shown == {"both", *unseen.TEXTS}
    assert {arm.control for arm in pooled if arm.group == "unseen"} == set(unseen.CONTROLS)
    assert len({arm.path(Path("x")) for arm in found}) == len(found)


def test_episodes_are_read_as_they_were_kept(tmp_path):
    keep(tmp_path, "tokens-seed0-both-unseen", [[1, 0], [0, 0]])
    episodes = read_episodes(tmp_path / "tokens-seed0-both-unseen.csv")
    assert episodes[0] == EpisodeResult("door-lock-v3", 0, True, True, 1.5, 20, None)
    assert [episode.success for episode in episodes] == [True, False, False, False]


def test_figures_are_means_over_seeds_and_tasks(tmp_path):
    keep(tmp_path, "tokens-seed0-both-unseen", [[1, 1], [1, 0]])
    keep(tmp_path, "tokens-seed1-both-unseen", [[1, 0], [0, 0]])
    keep(tmp_path, "tokens-seed0-wrong-unseen", [[1, 0], [0, 0]])
    keep(tmp_path, "tokens-seed0-none-unseen", [[0, 0], [0, 0]])
    keep(tmp_path, "retrieve_and_play-seed0-trajectory-unseen", [[1, 0], [0, 0]])
    found = unseen.figures(tmp_path)
    assert found["unseen_tokens"] == 50
    assert found["seeds_unseen_tokens_both"] == 2
    assert found["unseen_tokens_wrong_prompt"] == 25
    assert found["unseen_no_prompt"] == 0
    assert found["unseen_retrieve_and_play"] == 25
    keep(tmp_path, "tokens-seed0-both-seen", [[1, 1], [1, 0]])
    lines = unseen.write_tables(tmp_path, tmp_path / "table.md")
    table = (tmp_path / "table.md").read_text()
    assert "| tokens | both | 25 | 75 | 50 (" in table
    assert "| tokens | both | 75 (" in table.partition("\n\n")[2]
    row = next(line for line in lines if line.startswith("| retrieved |")).split("|")
    assert [cell.strip().partition(" ")[0] for cell in row[2:6]] == ["50", "25", "0", "75"]
    unseen.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_time_of_training_is_averaged_over_seeds(tmp_path):
    for seed, seconds in enumerate((600, 1200)):
        path = tmp_path / f"tokens-seed{seed}-training.json"
        path.write_text(json.dumps({"train_seconds": seconds}))
    assert unseen.figures(tmp_path) == {"train_minutes_tokens": 15}


def test_the_paired_interval_resamples_goals_within_tasks(tmp_path):
    generator = np.random.default_rng(0)
    ours = generator.random((2, 40)) < [[0.9], [0.6]]
    theirs = generator.random((2, 40)) < [[0.6], [0.5]]
    keep(tmp_path, "tokens-seed0-both-unseen", ours)
    keep(tmp_path, "retrieve_and_play-seed0-trajectory-unseen", theirs)
    found = unseen.figures(tmp_path)
    low = found["tokens_minus_retrieve_and_play_low"]
    high = found["tokens_minus_retrieve_and_play_high"]
    difference = ours.astype(float) - theirs
    # Independently: the normal interval of a mean of two task means.
    error = np.sqrt((difference.var(axis=1) / 40).sum()) / 2
    expected = 100 * difference.mean() + 100 * 1.96 * error * np.array([-1, 1])
    assert [low, high] == pytest.approx(expected.tolist(), abs=1.5)


def test_an_arm_is_run_once_and_kept(dataset, tmp_path, monkeypatch):
    """The training-free arm, end to end on tasks that the tests have data of."""
    monkeypatch.setattr(unseen, "make_bank", make_bank_of(dataset))
    options = argparse.Namespace(
        keep=tmp_path, episodes=1, seen_episodes=1, workers=1, split="ml45", data=tmp_path
    )
    split = make_split("tests", train=["reach-v3"], held_out=["window-open-v3"])
    arm = unseen.Arm("retrieve_and_play", 0, "trajectory", "unseen")
    unseen.run(arm, split, options, {})
    path = arm.path(tmp_path)
    (episode,) = read_episodes(path)
    assert episode.task == "window-open-v3"
    assert episode.success
    before = path.stat().st_mtime_ns
    unseen.run(arm, split, options, {})
    assert path.stat().st_mtime_ns == before


def make_bank_of(dataset):
    from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

    def make_bank(group, tasks, length, options):
        return TrajectoryPromptBank.from_dataset(dataset, length)

    return make_bank
