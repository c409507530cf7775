"""Figures and tables of folders: unseen tasks, speeds and levels."""

import json
import math

import numpy as np
import pytest

from benchmarks.studies import figures, quick
from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store, read_episodes, write_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from tests.benchmarks.studies.tiny import HEAD, write

TASKS = ("door-lock-v3", "box-close-v3")
UNSEEN = HEAD + (
    "folder: unseen\nvariants: {retrieved: {arms: [both, none, wrong, both/seen]}, "
    "retrieve_and_play: {policy: retrieve_and_play, arms: [trajectory]}}"
)
SPEEDS = HEAD + (
    "folder: FOLDER\nfamily: locomotion\nvariants: {NAME-ours: {arms: [both, text, "
    "{control: wrong, name: wrong_prompt}]}, NAME-oracle: {arms: [{name: oracle}]}}"
)


def stored(folder, text, arms, **about):
    """A study of which some arms are stored: by variant, seed, arm and group, values by task."""
    study = read_studies(write(folder / "definitions", tiny=text))["tiny"]
    store = Store(folder)
    for (name, seed, arm_name, group), by_task in arms.items():
        variant, arm = study.find(name, arm_name, group)
        rows = [
            EpisodeResult(
                task, goal, value is True, value is True, 1.5, 20,
                score=value if study.measures_scores else None, action_change=0.25,
            )
            for task, values in by_task.items()
            for goal, value in enumerate(values)
        ]  # fmt: skip
        path = store.path(study, variant, seed, arm)
        write_episodes(path, rows)
        assert read_episodes(path) == rows
        facts = {"train_seconds": 600.0 * (seed + 1), "updates": 7 + seed} | about
        store.training_path(study, variant, seed).write_text(json.dumps(facts))
    return {"tiny": study}, store


def successes(*rows):
    return {task: [bool(value) for value in row] for task, row in zip(TASKS, rows, strict=True)}


def test_figures_are_means_over_seeds_and_tasks(tmp_path):
    arms = {
        ("retrieved", 0, "both", "unseen"): successes([1, 1, 1, 1], [1, 1, 0, 0]),
        ("retrieved", 1, "both", "unseen"): successes([1, 1, 0, 0], [0, 0, 0, 0]),
        ("retrieved", 0, "wrong", "unseen"): successes([1, 1, 0, 0], [0, 0, 0, 0]),
        ("retrieved", 0, "none", "unseen"): successes([0, 0, 0, 0], [0, 0, 0, 0]),
        ("retrieved", 0, "both", "seen"): successes([1, 1, 1, 1], [1, 1, 0, 0]),
        ("retrieve_and_play", 0, "trajectory", "unseen"): successes([1, 1, 0, 0], [0, 0, 0, 0]),
    }
    studies, store = stored(tmp_path, UNSEEN, arms)
    (found,) = figures.folder_figures(studies, store).values()
    assert found["unseen_retrieved"] == 50
    assert found["seeds_unseen_retrieved_both"] == 2
    assert found["unseen_retrieved_wrong_prompt"] == found["unseen_retrieve_and_play"] == 25
    assert found["unseen_no_prompt"] == 0
    assert found["train_minutes_retrieved"] == 15
    rows = figures.rows_of("unseen", studies, store)
    unseen, seen = (table.markdown(texts=2) for table in figures.success_tables(rows))
    assert "| retrieved | both | 25 | 75 | 50 (" in unseen
    assert "| retrieved | both | 75 (" in seen
    figures.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_paired_interval_resamples_goals_within_tasks(tmp_path):
    generator = np.random.default_rng(0)
    ours = generator.random((2, 40)) < [[0.9], [0.6]]
    theirs = generator.random((2, 40)) < [[0.6], [0.5]]
    text = UNSEEN.replace("episodes: 4", "episodes: 40")
    arms = {
        ("retrieved", 0, "both", "unseen"): successes(*ours),
        ("retrieve_and_play", 0, "trajectory", "unseen"): successes(*theirs),
    }
    studies, store = stored(tmp_path, text, arms)
    found = figures.folder_figures(studies, store)["unseen"]
    low = found["retrieved_minus_retrieve_and_play_low"]
    high = found["retrieved_minus_retrieve_and_play_high"]
    difference = ours.astype(float) - theirs
    # Independently: the normal interval of a mean of two task means.
    error = np.sqrt((difference.var(axis=1) / 40).sum()) / 2
    expected = 100 * difference.mean() + 100 * 1.96 * error * np.array([-1, 1])
    assert [low, high] == pytest.approx(expected.tolist(), abs=1.5)


def test_scores_weigh_every_task_the_same_and_have_intervals_over_seeds(tmp_path):
    arms = {
        ("speeds-ours", 0, "wrong_prompt", "unseen"): {"a": [10.0] * 4, "b": [30.0, 50.0] * 2},
        ("speeds-ours", 1, "wrong_prompt", "unseen"): {"a": [20.0] * 4, "b": [40.0, 60.0] * 2},
        ("speeds-oracle", 0, "oracle", "unseen"): {"a": [90.0] * 4, "b": [100.0] * 4},
    }
    text = SPEEDS.replace("NAME", "speeds").replace("FOLDER", "d4rl_velocity")
    studies, store = stored(tmp_path, text, arms)
    found = figures.folder_figures(studies, store)["d4rl_velocity"]
    half = 12.7062 * math.sqrt(50) / math.sqrt(2)
    ends = [found[f"wrong_prompt{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([30.0, 30.0 - half, 30.0 + half], abs=1e-3)
    assert (found["oracle"], "oracle_low" in found) == (95.0, False)
    assert (found["policies"], found["updates"], found["episodes_per_task"]) == (3, 7, 4)
    assert (found["seeds_ours"], found["train_minutes_ours"]) == (2, 15)
    table = figures.speed_table(figures.rows_of("d4rl_velocity", studies, store))
    assert table.rows[1][0] == "b"
    assert table.rows[1][2].startswith("45 (")
    assert table.rows[2][0] == "mean of four speeds"


def test_the_tables_of_levels(tmp_path):
    text = (
        SPEEDS.replace("NAME", "shift-hopper")
        .replace("FOLDER", "d4rl_levels")
        .replace(
            "variants: {",
            "variants: {file-hopper_medium-unprompted: "
            "{arms: [{control: none, name: unprompted}]}, ",
        )
    )
    arms = {
        ("shift-hopper-ours", 0, "both", "unseen"): {"expert": [40.0] * 4},
        ("file-hopper_medium-unprompted", 0, "unprompted", "unseen"): {"medium": [45.0] * 4},
        ("file-hopper_medium-unprompted", 1, "unprompted", "unseen"): {"medium": [47.0] * 4},
    }
    studies, store = stored(tmp_path, text, arms)
    found = figures.folder_figures(studies, store)["d4rl_levels"]
    assert found["shift_hopper_both"] == 40.0
    assert found["file_hopper_medium_unprompted"] == 46.0
    shift, files = figures.level_tables(figures.rows_of("d4rl_levels", studies, store))
    assert shift.rows == [("hopper", "-", "-", "-", "-", "40 (-)", "-")]
    assert files.rows[0][1].startswith("46 (")


def test_quick_figures_follow_from_the_stored_results(capsys):
    assert quick.check() == 0, capsys.readouterr().out
