"""Against rliable 1.2.0 (Agarwal et al. 2021), by hand, and by simulation."""

import numpy as np
import pytest

from llmdpd_torchrl.evaluation import comparison
from llmdpd_torchrl.evaluation.comparison import (
    crossed_difference,
    interquartile_mean,
    nested_mean,
    paired_difference,
    performance_profile,
    successes,
)
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, summarise
from llmdpd_torchrl.utils.errors import DataError

# Eight runs on each of four tasks, of two methods. rliable's figures for them are of 50 000
# stratified resamples; it needs pandas < 3.
OURS = {
    "a": [0.733, 0.873, 0.43, 0.418, 0.883, 0.851, 0.567, 0.717],
    "b": [0.621, 0.48, 0.664, 0.657, 0.398, 0.52, 0.909, 0.8],
    "c": [0.541, 0.906, 0.914, 0.689, 0.807, 0.598, 0.768, 0.318],
    "d": [0.704, 0.827, 0.402, 0.562, 0.851, 0.695, 0.752, 0.66],
}
THEIRS = {
    "a": [0.919, 0.59, 0.487, 0.705, 0.568, 0.965, 0.694, 0.435],
    "b": [0.812, 0.564, 0.697, 0.565, 0.663, 0.615, 0.424, 0.692],
    "c": [0.564, 0.727, 0.7, 0.791, 0.497, 0.557, 0.386, 0.295],
    "d": [0.758, 0.445, 0.509, 0.753, 0.528, 0.614, 0.248, 0.246],
}


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (interquartile_mean(OURS), (0.687125, 0.6108125, 0.7565)),
        (interquartile_mean(THEIRS), (0.6010625, 0.537375, 0.660625)),
    ],
)
def test_against_rliable(estimate, expected):
    assert estimate.value == pytest.approx(expected[0], abs=1e-9)
    assert estimate[1:] == pytest.approx(expected[1:], abs=0.008)  # other random resamples
    profile = performance_profile(OURS, [0.0, 0.25, 0.5, 0.75])
    assert profile.tolist() == [1.0, 1.0, 0.8125, 0.375]


def test_successes_are_laid_out_by_run_and_goal():
    def run(*won):
        return [EpisodeResult(task, goal, (task, goal) in won, False, 0.0, 9)
                for goal in (1, 0) for task in ("b", "a")]  # fmt: skip

    table = successes([run(("b", 0)), run(("a", 1), ("b", 1))])
    assert {task: rows.tolist() for task, rows in table.items()} == {
        "b": [[1, 0], [0, 1]],
        "a": [[0, 0], [0, 1]],
    }
    with pytest.raises(DataError, match="same tasks and goals"):
        successes([run(), run()[:-1]])
    with pytest.raises(DataError, match="at least one"):
        successes([])


def test_a_failed_episode_is_no_success():
    episode = EpisodeResult("a", 0, True, True, 0.0, 9, error="killed")
    assert successes([[episode]])["a"].item() == 0


def test_paired_difference_by_hand():
    ours = {"a": [[1, 1, 0, 1], [1, 0, 0, 1]], "b": [1, 1, 1, 0]}
    theirs = {"a": [0, 1, 0, 0], "b": [1, 1, 1, 0]}
    estimate = paired_difference(ours, theirs)
    assert estimate.value == pytest.approx((0.375 + 0) / 2)
    assert estimate.low < estimate.value < estimate.high
    same = paired_difference(theirs, theirs)
    assert same == (0, 0, 0)
    with pytest.raises(DataError, match="same tasks"):
        paired_difference(ours, {"a": [0, 1, 0, 0]})
    with pytest.raises(DataError, match="4 goals against 3"):
        paired_difference(ours, {"a": [0, 1, 0], "b": [1, 1, 1, 0]})


def test_a_shift_of_everything_is_certain():
    generator = np.random.default_rng(0)
    scores = {task: generator.normal(size=20) for task in "ab"}
    better = {task: values + 0.3 for task, values in scores.items()}
    assert paired_difference(better, scores) == pytest.approx((0.3, 0.3, 0.3))


def test_the_profile_falls_from_one_to_zero():
    profile = performance_profile({"a": [0.1, 0.9], "b": [0.5]}, [0.0, 0.1, 0.5, 0.9])
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_what_has_no_interval_is_refused():
    with pytest.raises(DataError, match="no interval"):
        interquartile_mean({"a": [1.0], "b": [0.5]})
    with pytest.raises(DataError, match="at least one task"):
        interquartile_mean({})
    with pytest.raises(DataError, match="at least one task, and one entry"):
        interquartile_mean({"a": []})
    nothing = {"a": [0.0], "b": [0.0, 0.0]}
    assert paired_difference({"a": [1.0], "b": [0.0, 1.0]}, nothing).value == 0.75


@pytest.mark.parametrize("measure", ["paired", "wilson group"])
def test_intervals_cover_what_they_say(measure, monkeypatch):
    """95 % of the intervals of 400 evaluations of 5 tasks and 25 goals hold the true value."""
    monkeypatch.setattr(comparison, "_RESAMPLES", 999)
    generator = np.random.default_rng(0)
    rates = np.array([0.3, 0.5, 0.7, 0.9, 0.95])
    other = np.array([0.2, 0.6, 0.6, 0.7, 0.9])
    covered = []
    for number in range(400):
        uniform = generator.random((5, 25))
        ours = {str(t): (uniform[t] < rates[t]).astype(float) for t in range(5)}
        truth = rates.mean()
        if measure == "paired":  # goals that are hard for one are hard for the other
            theirs = {str(t): (uniform[t] < other[t]).astype(float) for t in range(5)}
            low, high = paired_difference(ours, theirs, seed=number)[1:]
            truth = (rates - other).mean()
        else:
            episodes = [
                EpisodeResult(task, goal, bool(won), False, 0.0, 1)
                for task, goals in ours.items()
                for goal, won in enumerate(goals)
            ]
            group = summarise(episodes, [], list(ours)).unseen
            low, high = group.low, group.high
        covered.append(low <= truth <= high)
    assert 0.915 <= np.mean(covered) <= 0.985


def test_the_crossed_interval_covers_new_seeds_and_goals():
    """Against the truth of a made-up world, in which seeds, goals and chance all matter."""
    generator = np.random.default_rng(0)
    covered = {"crossed": 0, "goals alone": 0}
    worlds = 200
    for _ in range(worlds):
        goals = generator.normal(0, 0.3, size=25)
        sides = [
            {"a": goals + generator.normal(0, 0.2, (4, 1)) + generator.normal(0, 0.3, (4, 25))}
            for _ in range(2)
        ]
        for name, made in (("crossed", crossed_difference), ("goals alone", paired_difference)):
            estimate = made(*sides)
            covered[name] += estimate.low <= 0 <= estimate.high  # both sides are equally good
    assert covered["crossed"] / worlds > 0.88
    assert covered["goals alone"] / worlds < 0.7


def test_the_same_policies_seeds_are_resampled_together():
    generator = np.random.default_rng(0)
    seeds = generator.normal(0, 5, (4, 1))
    one = {"a": seeds + 1 + generator.normal(0, 0.1, (4, 20))}
    other = {"a": seeds + generator.normal(0, 0.1, (4, 20))}
    together = crossed_difference(one, other, same_policies=True)
    apart = crossed_difference(one, other)
    assert together.value == pytest.approx(apart.value)
    assert 0.8 < together.low < together.high < 1.2
    assert apart.high - apart.low > 4


def test_a_side_of_one_seed_is_taken_as_it_is():
    generator = np.random.default_rng(0)
    scores = {task: generator.random((1, goals)) for task, goals in (("a", 50), ("b", 20))}
    nothing = {task: np.zeros_like(rows) for task, rows in scores.items()}
    crossed = crossed_difference(scores, nothing)
    paired = paired_difference(scores, nothing)
    assert list(crossed) == pytest.approx(list(paired), abs=0.01)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"b": [[1, 0]]}, "the same tasks"),
        ({"a": [[1, 0, 1]]}, "the same goals"),
        ({"a": [[1, 0]]}, "the same seeds, not 2 and 1"),
    ],
)
def test_what_can_not_be_crossed(theirs, message):
    with pytest.raises(DataError, match=message):
        crossed_difference({"a": [[1, 0], [0, 0]]}, theirs, same_policies=True)


def test_a_nested_mean_is_for_new_tasks_and_new_seeds():
    values = {"a": [0.0, 0.0, 0.0], "b": [100.0, 100.0, 100.0], "c": [50.0], "d": [30.0, 70.0]}
    found = nested_mean(values)
    assert found.value == 50
    assert found == nested_mean(values)
    assert 5 < found.low < 30
    assert 70 < found.high < 95
    equal = nested_mean({"a": [3.0, 3.0], "b": [3.0]})
    assert equal == (3, 3, 3)
    of_seeds = nested_mean({"a": [0.0, 100.0], "b": [0.0, 100.0]})
    assert of_seeds.low < 15
    assert of_seeds.high > 85
    with pytest.raises(DataError, match="at least one task"):
        nested_mean({})
