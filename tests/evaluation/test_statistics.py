"""Intervals against published values, groups by hand, and the coverage of the group's interval."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmdpd_torchrl.evaluation.statistics import (
    EpisodeResult,
    ResultsSummary,
    summarise,
    wilson_interval,
)
from llmdpd_torchrl.utils.errors import DataError


def episodes(task: str, successes: int, count: int, **changes) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            **{
                "task": task,
                "goal_index": index,
                "success": index < successes,
                "success_at_end": index < successes,
                "episode_return": float(index),
                "length": 10 * index,
                **changes,
            }
        )
        for index in range(count)
    ]


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score, no correction).
@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0000),
    ],
)
def test_wilson_interval_matches_published_values(successes, count, low, high):
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


# Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10: intervals of p1 - p2.
# The mean of p1 and 1 - p2 is (1 + p1 - p2) / 2, so its interval follows.
@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)],
)
def test_group_interval_matches_published_differences(first, second, low, high):
    (a, n), (b, m) = first, second
    group = summarise(episodes("a", a, n) + episodes("b", m - b, m), ["a", "b"], []).seen
    assert (group.low, group.high) == pytest.approx(((1 + low) / 2, (1 + high) / 2), abs=5e-5)


def test_group_interval_of_one_task_is_wilsons():
    summary = summarise(episodes("a", 3, 10), [], ["a"])
    assert (summary.unseen.low, summary.unseen.high) == pytest.approx(wilson_interval(3, 10))
    assert summary.seen is None


def test_group_interval_does_not_shrink_to_a_point_when_nothing_succeeds():
    group = summarise(episodes("a", 0, 25) + episodes("b", 0, 25), ["a", "b"], []).seen
    assert group.low == 0.0
    assert group.high > 0.05


def test_group_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    rates = np.array([0.0, 0.4, 0.6, 0.85, 1.0])
    names = [f"t{index}" for index in range(len(rates))]
    covered, trials = 0, 400
    for _ in range(trials):
        successes = rng.binomial(25, rates)
        results = [e for n, s in zip(names, successes, strict=True) for e in episodes(n, s, 25)]
        group = summarise(results, names, []).seen
        covered += group.low <= rates.mean() <= group.high
    assert 0.92 <= covered / trials <= 0.995


def test_every_task_weighs_the_same_whatever_its_episodes():
    summary = summarise(episodes("a", 10, 10) + episodes("b", 0, 90), ["a"], ["b"])
    both = summarise(episodes("a", 10, 10) + episodes("b", 0, 90), ["a", "b"], [])
    assert summary.seen.success_rate == 1.0
    assert summary.unseen.success_rate == 0.0
    assert both.seen.success_rate == 0.5
    assert both.seen.episodes == 100


def test_an_episode_that_broke_off_counts_as_not_solved_and_not_in_the_means():
    broken = episodes("a", 1, 1, length=999, episode_return=999.0, error="MuJoCo: NaN in qacc")
    task = summarise(episodes("a", 3, 3) + broken, ["a"], []).tasks[0]
    assert (task.episodes, task.successes, task.errors) == (4, 3, 1)
    assert task.success_rate == task.success_at_end_rate == 0.75
    assert (task.mean_return, task.mean_length) == (1.0, 10.0)


def test_only_broken_episodes_have_no_means():
    task = summarise(episodes("a", 0, 2, error="boom"), ["a"], []).tasks[0]
    assert task.mean_return is None
    assert task.mean_length is None


def test_success_at_end_is_counted_apart():
    task = summarise(episodes("a", 4, 4, success_at_end=False), ["a"], []).tasks[0]
    assert (task.success_rate, task.success_at_end_rate) == (1.0, 0.0)


def test_tasks_come_in_the_order_asked_for():
    results = episodes("c", 1, 2) + episodes("a", 1, 2) + episodes("b", 1, 2)
    summary = summarise(results, ["b", "c"], ["a"])
    assert [(task.task, task.seen) for task in summary.tasks] == [
        ("b", True),
        ("c", True),
        ("a", False),
    ]


@pytest.mark.parametrize(
    ("seen", "unseen", "message"),
    [
        (["a"], ["a"], "twice"),
        (["b"], [], "'a'"),
        (["a", "b"], [], "no episode of \\['b'\\]"),
    ],
)
def test_tasks_that_do_not_fit_the_episodes_are_refused(seen, unseen, message):
    with pytest.raises(ValueError, match=message):
        summarise(episodes("a", 1, 2), seen, unseen)


def test_summary_survives_json():
    summary = summarise(episodes("a", 3, 7) + episodes("b", 0, 2, error="boom"), ["a"], ["b"])
    assert ResultsSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


def test_from_dict_names_the_missing_key():
    data = summarise(episodes("a", 3, 7), ["a"], []).to_dict()
    del data["tasks"][0]["success_rate"]
    with pytest.raises(DataError, match="success_rate"):
        ResultsSummary.from_dict(data)


def scored(task, *scores):
    return [EpisodeResult(task, i, False, False, 0.0, 5, score=s) for i, s in enumerate(scores)]


def test_scores_have_students_interval():
    # Student's own sleep data (1908), drug 2: mean 2.33, sd 2.002, n 10; 95 %: 0.898 to 3.762.
    drug = scored("a", 1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
    summary = summarise(drug, ["a"], [])
    assert summary.measure == "score"
    assert summary.tasks[0].percent == pytest.approx((2.33, 0.8977, 3.7623), abs=1e-4)
    assert summary.seen.percent == pytest.approx(summary.tasks[0].percent)
    assert ResultsSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


def test_scores_of_a_group_weigh_every_task_the_same():
    group = summarise(scored("a", 0.0, 2.0) + scored("b", 10.0, 10.0, 10.0), [], ["a", "b"]).unseen
    assert group.score == 5.5
    half = 12.7062 * np.sqrt(2) / np.sqrt(2)  # t of one degree of freedom, s / sqrt(n)
    assert group.percent == pytest.approx((5.5, 5.5 - half / 2, 5.5 + half / 2), abs=1e-4)


def test_a_single_episode_has_a_score_and_no_interval():
    summary = summarise(scored("a", 7.0), ["a"], [])
    assert summary.tasks[0].percent.text(1) == summary.seen.percent.text(1) == "7.0 (-)"
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["seen"]["score_low"] is None


def test_an_episode_that_broke_off_scores_nothing():
    lost = EpisodeResult("a", 1, False, False, 0.0, 0, error="killed")
    assert summarise([*scored("a", 8.0), lost], ["a"], []).tasks[0].score == 4.0


def test_what_was_written_before_there_were_scores_is_read():
    old = summarise(episodes("a", 3, 4), ["a"], []).to_dict()
    for part in (*old["tasks"], old["seen"]):
        for key in [key for key in part if key.startswith(("score", "action"))]:
            del part[key]
    summary = ResultsSummary.from_dict(old)
    assert summary.measure == "success %"
    assert summary.seen.percent.value == 75.0
