"""Comparison of runs: differences and interquartile means with bootstrap intervals.

Measures of Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical
Precipice"), on SciPy's bootstrap. Scores are arrays by task. Whether an
entry of an array is a run's mean or one episode decides what the intervals cover: a new seed, or a
new episode of the given policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, trim_mean

from llmdpd_torchrl.evaluation.statistics import CONFIDENCE, EpisodeResult, Estimate
from llmdpd_torchrl.utils.errors import DataError

Scores = Mapping[str, ArrayLike]
_RESAMPLES = 9999


def successes(runs: Sequence[Sequence[EpisodeResult]]) -> dict[str, NDArray[np.float64]]:
    """Successes by task, [runs, episodes], the same goals in the same columns.

    Args:
        runs: the episodes of one seed each.

    Raises:
        DataError: if the runs are not of the same tasks and goals.
    """
    return _by_task(runs, lambda episode: float(episode.success and episode.error is None))


def normalized_scores(runs: Sequence[Sequence[EpisodeResult]]) -> dict[str, NDArray[np.float64]]:
    """Normalised scores as :func:`successes` has them; a crashed episode scores 0.

    Raises:
        DataError: as there, or if an episode has no score.
    """

    def score(episode: EpisodeResult) -> float:
        if episode.error is not None:
            return 0.0
        if episode.score is None:
            raise DataError(f"{episode.task}: there is no normalised score; compare successes")
        return episode.score

    return _by_task(runs, score)


def percents(runs: Sequence[Sequence[EpisodeResult]], *, scored: bool) -> Scores:
    """Normalised scores, or successes in percent, as :func:`successes` has them."""
    if scored:
        return normalized_scores(runs)
    return {task: 100 * rows for task, rows in successes(runs).items()}


def _by_task(
    runs: Sequence[Sequence[EpisodeResult]], value: Callable[[EpisodeResult], float]
) -> dict[str, NDArray[np.float64]]:
    tables = [{(e.task, e.goal_index): value(e) for e in run} for run in runs]
    if not tables or any(table.keys() != tables[0].keys() for table in tables):
        raise DataError("runs can be compared on the same tasks and goals only, and at least one")
    found: dict[str, NDArray[np.float64]] = {}
    for task in dict.fromkeys(task for task, _ in tables[0]):
        goals = sorted(goal for name, goal in tables[0] if name == task)
        found[task] = np.array([[table[task, goal] for goal in goals] for table in tables])
    return found


def interquartile_mean(scores: Scores, *, seed: int = 0) -> Estimate:
    """Mean of the middle half of all entries: less moved by outliers than the mean.

    The resampling is stratified: within each task, whose set is fixed.
    """
    return _estimate(_flat(scores), _interquartile_mean, seed)


def paired_difference(ours: Scores, theirs: Scores, *, seed: int = 0) -> Estimate:
    """Mean over tasks of ours minus theirs, on the same goals.

    Goals are resampled within each task, for both sides together: goals that are hard for both do
    not widen the interval. Several seeds are averaged goal by goal first, and are not resampled.
    Entries are ``[goals]`` or ``[seeds, goals]``.

    Raises:
        DataError: if tasks or goals differ.
    """
    if ours.keys() != theirs.keys():
        raise DataError("a paired difference needs the same tasks on both sides")
    differences = []
    for task in ours:
        mine, other = _by_goal(ours[task]), _by_goal(theirs[task])
        if mine.shape != other.shape:
            raise DataError(f"{task}: {len(mine)} goals against {len(other)}; they can't be paired")
        differences.append(mine - other)
    return _estimate(differences, _mean_of_means, seed)


def crossed_difference(
    ours: Scores, theirs: Scores, *, same_policies: bool = False, seed: int = 0
) -> Estimate:
    """Mean over tasks of ours minus theirs, for new seeds *and* new goals.

    Seeds and goals are resampled crosswise (the pigeonhole bootstrap of Owen 2007): a seed's policy
    plays all goals of all tasks, a goal is played by all seeds of both sides. A bootstrap
    underestimates the spread of means over few seeds, which is corrected (Rao & Wu 1988). A side of
    one seed is not resampled: the interval then does not cover another training of it.

    Args:
        ours: by task, ``[seeds, goals]``.
        theirs: of the same goals.
        same_policies: both sides are the same policies, seed by seed, with different prompts; their
            seeds are resampled together.
        seed: of the resampling.

    Raises:
        DataError: if tasks, goals or, for the same policies, seeds differ.
    """
    pairs = []
    for task in ours if ours.keys() == theirs.keys() else ():
        pairs.append(tuple(np.atleast_2d(np.asarray(s[task], float)) for s in (ours, theirs)))
    if not pairs:
        raise DataError("a crossed difference needs the same tasks on both sides, at least one")
    rows = [{pair[side].shape[0] for pair in pairs} for side in (0, 1)]
    if any(a.shape[1] != b.shape[1] for a, b in pairs) or any(len(r) > 1 for r in rows):
        raise DataError("a crossed difference needs the same goals and seeds in every task")
    mine, other = (found.pop() for found in rows)
    if same_policies and mine != other:
        raise DataError(f"the same policies have the same seeds, not {mine} and {other}")
    goals = tuple(a.shape[1] for a, _ in pairs)
    weights, counts = _crossed_resamples((mine,) if same_policies else (mine, other), goals, seed)
    draws = np.zeros(_RESAMPLES)
    for (a, b), count in zip(pairs, counts, strict=True):
        share = np.divide(count, a.shape[1], dtype=float)
        draws += ((weights[0] @ a - weights[-1] @ b) * share).sum(-1) / len(pairs)
    value = float(np.mean([a.mean() - b.mean() for a, b in pairs]))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


@lru_cache(maxsize=4)
def _crossed_resamples(
    seeds: tuple[int, ...], goals: tuple[int, ...], seed: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.uint16]]]:
    """The weights of each side's seeds and the counts of each task's goals.

    ``[resamples, seeds]`` and ``[resamples, goals]``. Resampling is most of the work, and many
    differences have the same shapes.
    """
    generator = np.random.default_rng(seed)
    weights = [_seed_weights(count, generator) for count in seeds]
    resampled = (generator.multinomial(n, np.full(n, 1 / n), _RESAMPLES) for n in goals)
    return weights, [counts.astype(np.uint16) for counts in resampled]


def _seed_weights(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Weight of each seed in each resample, [resamples, seeds]."""
    if count == 1:
        return np.ones((_RESAMPLES, 1))
    even = 1 / count
    resampled = generator.multinomial(count, np.full(count, even), _RESAMPLES) / count
    return even + np.sqrt(count / (count - 1)) * (resampled - even)


def nested_mean(values: Scores, *, seed: int = 0) -> Estimate:
    """Mean over tasks of the means of their seeds, for new tasks *and* new seeds.

    Tasks are resampled, and within each its seeds. What is compared on the same tasks, seeds and
    goals is subtracted before, so that the interval is that of a paired difference.

    Args:
        values: by task, a number a seed, ``[seeds]``; tasks may have different numbers of them.
        seed: of the resampling.

    Raises:
        DataError: if there is no task, or one without a seed.

    Examples:
        >>> nested_mean({"reach-v3": [1.0, 3.0], "push-v3": [2.0, 2.0]}).value
        2.0
    """
    samples = _flat(values)
    counts = np.array([len(sample) for sample in samples])
    table = np.zeros((len(samples), counts.max()))
    for row, sample in zip(table, samples, strict=True):
        row[: len(sample)] = sample
    generator = np.random.default_rng(seed)
    tasks = generator.integers(len(samples), size=(_RESAMPLES, len(samples)))
    number = counts[tasks][..., None]
    seeds = (generator.random((*tasks.shape, counts.max())) * number).astype(int)
    counted = np.arange(counts.max()) < number
    means = (table[tasks[..., None], seeds] * counted).sum(-1) / number[..., 0]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means.mean(-1), [tail, 1 - tail])
    return Estimate(float(np.mean([s.mean() for s in samples])), float(low), float(high))


def performance_profile(scores: Scores, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Share of entries above each of ``thresholds`` [T], every task weighing the same."""
    above = [sample[:, None] > np.asarray(thresholds) for sample in _flat(scores)]
    return np.mean([task.mean(0) for task in above], axis=0)


def _flat(scores: Scores) -> list[NDArray[np.float64]]:
    samples = [np.asarray(values, dtype=np.float64).ravel() for values in scores.values()]
    if not samples or not all(len(sample) for sample in samples):
        raise DataError("scores need at least one task, and one entry for each")
    return samples


def _by_goal(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array.mean(0) if array.ndim > 1 else array


def _mean_of_means(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)


def _interquartile_mean(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def _estimate(
    samples: Sequence[NDArray[np.float64]], statistic: Callable[..., Any], seed: int
) -> Estimate:
    value = float(statistic(*samples))
    if all(len(sample) == 1 for sample in samples):
        raise DataError("one entry a task has no interval: give more seeds or episodes")
    # A task of one entry has nothing to resample; SciPy needs two, and two equal ones are as one in
    # a mean over tasks.
    samples = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples]
    interval = bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
