"""Summaries of an evaluation: success rates or scores, with intervals valid for few episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest, t

from llmdpd_torchrl.utils.errors import DataError

#: Coverage of every interval in this package.
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value and its 95 % interval; unknown limits are NaN."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """The value and, in brackets, the interval: ``"90 (87 - 92)"``, ``"90 (-)"``."""
        limits = f"{self.low:.{digits}f} - {self.high:.{digits}f}"
        return f"{self.value:.{digits}f} ({'-' if math.isnan(self.low) else limits})"


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one evaluation episode.

    Attributes:
        task: name of the task.
        goal_index: index of the task's fixed evaluation goal.
        success: the task was solved at *some* step (Meta-World's own criterion).
        success_at_end: the task was still solved at the last step.
        episode_return: undiscounted sum of rewards.
        length: steps taken.
        error: one line when the episode crashed (a simulator exception, say), else ``None``.
        score: the return as a normalised score, 0 to 100, where the task has one.
        action_change: mean absolute difference of an action's entries from the step before; less is
            smoother.

    Examples:
        >>> EpisodeResult("reach-v3", 0, True, True, episode_return=950.0, length=60).error is None
        True
    """

    task: str
    goal_index: int
    success: bool
    success_at_end: bool
    episode_return: float
    length: int
    error: str | None = None
    score: float | None = None
    action_change: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Success rates, fractions in [0, 1], and normalised score, where there is one.

    Attributes:
        episodes: number of episodes, crashed ones included.
        success_rate: of a task, solved episodes by all; of a group, the mean of its tasks' rates.
        low: lower limit of the 95 % interval, see :func:`summarise`.
        high: upper limit of the same.
        success_at_end_rate: as ``success_rate``, of episodes that were solved at their last step.
        score: mean normalised score; a crashed episode scores 0.
        score_low: lower limit of its 95 % interval, ``None`` if a task has a single episode.
        score_high: upper limit of the same.
    """

    episodes: int
    success_rate: float
    low: float
    high: float
    success_at_end_rate: float
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None

    @property
    def percent(self) -> Estimate:
        """The score where there is one, otherwise the success rate, on a scale of 100."""
        if self.score is None:
            return Estimate(*(100 * rate for rate in (self.success_rate, self.low, self.high)))
        limits = self.score_low, self.score_high
        return Estimate(self.score, *(math.nan if limit is None else limit for limit in limits))


@dataclass(frozen=True, kw_only=True)
class TaskSummary(Rates):
    """All episodes of one task.

    Attributes:
        task: name of the task.
        seen: whether the policy was trained on it.
        successes: number of solved episodes; a crashed one is not solved.
        mean_return: mean return of the episodes that did not crash, ``None`` if all did.
        mean_length: mean length in steps of the same episodes, ``None`` if all crashed.
        errors: number of crashed episodes.
        action_change: mean over the episodes that did not crash, ``None`` if not measured.
    """

    task: str
    seen: bool
    successes: int
    mean_return: float | None
    mean_length: float | None
    errors: int = 0
    action_change: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupSummary(Rates):
    """Mean over the seen or over the unseen tasks, every task weighing the same.

    Attributes:
        tasks: number of tasks.
    """

    tasks: int


@dataclass(frozen=True)
class ResultsSummary:
    """One evaluation: its tasks, seen ones first, and the mean of each group.

    Attributes:
        tasks: one :class:`TaskSummary` a task.
        seen: mean of the seen tasks, ``None`` without any.
        unseen: mean of the unseen tasks, ``None`` without any.

    Examples:
        >>> episode = EpisodeResult("reach-v3", 0, True, True, episode_return=950.0, length=60)
        >>> summary = summarise([episode], ["reach-v3"], [])
        >>> ResultsSummary.from_dict(summary.to_dict()) == summary
        True
    """

    tasks: tuple[TaskSummary, ...]
    seen: GroupSummary | None
    unseen: GroupSummary | None

    @property
    def measure(self) -> str:
        """Unit of ``percent``: ``"success %"`` or ``"score"``."""
        return "success %" if any(task.score is None for task in self.tasks) else "score"

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries that :mod:`json` can write."""
        return {"confidence": CONFIDENCE, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultsSummary:
        """Rebuild what :meth:`to_dict` returned; further keys are left alone.

        Raises:
            DataError: if a key is missing, or something is not of this form.
        """
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise DataError(f"an evaluation summary: {wrong_entry(error)}") from None


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), at 95 %.

    Unlike ``p ± 1.96 sqrt(p (1 - p) / n)`` it stays inside [0, 1], has its nominal coverage for ten
    episodes, and does not shrink to a point when all or none of them succeed.
    """
    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Sequence[float]) -> Estimate:
    """The mean of some values and Student's t interval of it, at 95 %; a single one has none."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1))
    half /= math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def summarise(
    episodes: Iterable[EpisodeResult],
    seen_tasks: Sequence[str],
    unseen_tasks: Sequence[str],
) -> ResultsSummary:
    """Sum up episodes per task and per group.

    A group's figure is the mean of its tasks' success rates. Its interval treats the tasks as
    fixed (ML45's five unseen tasks are *the* unseen tasks, no sample of five) and the episodes as
    random, and combines the tasks' Wilson limits by the square-and-add rule (Newcombe 1998, method
    10; MOVER, Zou & Donner 2008): for T tasks, ``low = p - sqrt(sum (p_t - low_t)²) / T``, and
    alike above. A bootstrap over episodes and the normal approximation shrink to a point when all
    tasks are at 0 or 100 %, which is common here; this does not. With one task it *is* the Wilson
    interval. Scores are treated in the same way, with Student's t interval for a task's.

    Args:
        episodes: finished episodes, in any order.
        seen_tasks: tasks in the training data that were evaluated, in the order to report.
        unseen_tasks: tasks outside the training data that were evaluated, in the order to report.

    Returns:
        The summary, seen tasks first.

    Raises:
        ValueError: if a task is named twice, an episode's task is not named, or a named task has no
            episode: a mean over other tasks than the named ones would mislead.

    Examples:
        >>> episodes = [EpisodeResult("reach-v3", i, i < 3, i < 2, 10.0, 50) for i in range(4)]
        >>> summary = summarise(episodes, seen_tasks=["reach-v3"], unseen_tasks=[])
        >>> summary.tasks[0].success_rate, summary.seen.episodes, summary.unseen
        (0.75, 4, None)
    """
    names = [*seen_tasks, *unseen_tasks]
    by_task: dict[str, list[EpisodeResult]] = {name: [] for name in names}
    if len(by_task) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"tasks are named twice among the seen and unseen ones: {twice}")
    for episode in episodes:
        if episode.task not in by_task:
            raise ValueError(f"an episode of {episode.task!r}, neither a seen nor an unseen task")
        by_task[episode.task].append(episode)
    empty = [name for name, results in by_task.items() if not results]
    if empty:
        raise ValueError(f"no episode of {empty}: name only the tasks that were evaluated")

    seen = tuple(_summarise_task(name, True, by_task[name]) for name in seen_tasks)
    unseen = tuple(_summarise_task(name, False, by_task[name]) for name in unseen_tasks)
    return ResultsSummary(seen + unseen, _summarise_group(seen), _summarise_group(unseen))


def _summarise_task(task: str, seen: bool, results: Sequence[EpisodeResult]) -> TaskSummary:
    count = len(results)
    complete = [result for result in results if result.error is None]
    successes = sum(result.success for result in complete)
    low, high = wilson_interval(successes, count)
    score = _mean_score(results)
    changes = [result.action_change for result in complete if result.action_change is not None]
    return TaskSummary(
        task=task,
        seen=seen,
        episodes=count,
        successes=successes,
        success_rate=successes / count,
        low=low,
        high=high,
        success_at_end_rate=sum(result.success_at_end for result in complete) / count,
        mean_return=_mean([result.episode_return for result in complete]),
        mean_length=_mean([result.length for result in complete]),
        errors=count - len(complete),
        action_change=_mean(changes),
        **_score(score),
    )


def _mean_score(results: Sequence[EpisodeResult]) -> Estimate | None:
    """Mean score of a task, ``None`` if it has none."""
    if not any(result.score is not None for result in results):
        return None
    return student_interval([float(e.score or 0) if e.error is None else 0.0 for e in results])


def _summarise_group(tasks: Sequence[TaskSummary]) -> GroupSummary | None:
    if not tasks:
        return None
    count = len(tasks)
    rate = _combine([Estimate(task.success_rate, task.low, task.high) for task in tasks])
    score = None
    if all(task.score is not None for task in tasks):
        score = _combine([task.percent for task in tasks])
    return GroupSummary(
        tasks=count,
        episodes=sum(task.episodes for task in tasks),
        success_rate=rate.value,
        # The rule stays in [0, 1] by itself; rounding may miss it by one unit in the last place.
        low=max(rate.low, 0.0),
        high=min(rate.high, 1.0),
        success_at_end_rate=sum(task.success_at_end_rate for task in tasks) / count,
        **_score(score),
    )


def _combine(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of estimates, by the square-and-add rule; unknown limits stay unknown."""
    count = len(estimates)
    mean = sum(estimate.value for estimate in estimates) / count
    below = math.hypot(*(estimate.value - estimate.low for estimate in estimates)) / count
    above = math.hypot(*(estimate.high - estimate.value for estimate in estimates)) / count
    return Estimate(mean, mean - below, mean + above)


def _score(score: Estimate | None) -> dict[str, float | None]:
    """The fields of a score, for JSON, which has no NaN."""
    if score is None:
        return {}
    low, high = (None if math.isnan(limit) else limit for limit in score[1:])
    return {"score": score.value, "score_low": low, "score_high": high}


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values) / len(values)) if values else None


def wrong_entry(error: ValidationError) -> str:
    """The first entry of a stored result that is not of its form, for a message of one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'} is wrong ({first['msg'].lower()})"
