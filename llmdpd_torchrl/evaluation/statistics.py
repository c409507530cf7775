"""Summaries of an evaluation: success rates or scores, with intervals valid for few episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, t

from llmdpd_torchrl.utils.errors import DataError

#: Coverage of every interval in this package.
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value and its 95 % interval; unknown limits are NaN.

    Examples:
        >>> Estimate(90.1, 87.0, 92.4).text()
        '90 (87 - 92)'
        >>> Estimate(12.0, math.nan, math.nan).text(1)
        '12.0 (-)'
    """

    value: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """The value and, in brackets, the interval."""
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


@dataclass(frozen=True)
class TaskSummary:
    """All episodes of one task. Rates and limits are fractions in [0, 1].

    Attributes:
        task: name of the task.
        seen: whether the policy was trained on it.
        episodes: number of episodes, crashed ones included.
        successes: number of solved episodes; a crashed one is not solved.
        success_rate: ``successes / episodes``.
        low: lower limit of the 95 % Wilson interval.
        high: upper limit of the 95 % Wilson interval.
        success_at_end_rate: fraction of episodes that were solved at their last step.
        mean_return: mean return of the episodes that did not crash, ``None`` if all did.
        mean_length: mean length in steps of the same episodes, ``None`` if all crashed.
        errors: number of crashed episodes.
        score: mean normalised score, where the task has one; a crashed episode scores 0.
        score_low: lower limit of the 95 % t interval of that mean, ``None`` of a single episode.
        score_high: upper limit of the same.
        action_change: mean over the episodes that did not crash, ``None`` if not measured.

    Examples:
        >>> episode = EpisodeResult("reach-v3", 0, True, True, episode_return=950.0, length=60)
        >>> task = summarise([episode], ["reach-v3"], []).tasks[0]
        >>> task.success_rate, round(task.low, 2), task.percent.text()
        (1.0, 0.21, '100 (21 - 100)')
    """

    task: str
    seen: bool
    episodes: int
    successes: int
    success_rate: float
    low: float
    high: float
    success_at_end_rate: float
    mean_return: float | None
    mean_length: float | None
    errors: int = 0
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    action_change: float | None = None

    @property
    def percent(self) -> Estimate:
        """The score where there is one, otherwise the success rate, on a scale of 100."""
        return _percent(self)


@dataclass(frozen=True)
class GroupSummary:
    """Mean over the seen or over the unseen tasks, every task weighing the same.

    Attributes:
        tasks: number of tasks.
        episodes: number of episodes of all tasks together.
        success_rate: mean of the tasks' success rates.
        low: lower limit of the 95 % interval of that mean, see :func:`summarise`.
        high: upper limit of the same.
        success_at_end_rate: mean of the tasks' rates of success at the last step.
        score: mean of the tasks' normalised scores, where all have one.
        score_low: lower limit of its 95 % interval, ``None`` if a task has a single episode.
        score_high: upper limit of the same.

    Examples:
        >>> episode = EpisodeResult("reach-v3", 0, True, True, episode_return=950.0, length=60)
        >>> summarise([episode], ["reach-v3"], []).seen.tasks
        1
    """

    tasks: int
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
        return _percent(self)


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
        return {
            "confidence": CONFIDENCE,
            "tasks": [asdict(task) for task in self.tasks],
            "seen": None if self.seen is None else asdict(self.seen),
            "unseen": None if self.unseen is None else asdict(self.unseen),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultsSummary:
        """Rebuild what :meth:`to_dict` returned; further keys are left alone.

        Raises:
            DataError: if a key is missing, or something is not of this form.
        """
        try:
            return cls(
                tasks=tuple(_from_dict(TaskSummary, task) for task in data["tasks"]),
                seen=None if data["seen"] is None else _from_dict(GroupSummary, data["seen"]),
                unseen=None if data["unseen"] is None else _from_dict(GroupSummary, data["unseen"]),
            )
        except KeyError as error:
            raise DataError(f"an evaluation summary needs the key {error}") from error
        except TypeError as error:
            raise DataError(f"an evaluation summary is of another form ({error})") from error


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), at 95 %.

    Unlike ``p ± 1.96 sqrt(p (1 - p) / n)`` it stays inside [0, 1], has its nominal coverage for ten
    episodes, and does not shrink to a point when all or none of them succeed.

    Examples:
        >>> low, high = wilson_interval(0, 20)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.1611)
    """
    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Sequence[float]) -> Estimate:
    """The mean of some values and Student's t interval of it, at 95 %; a single one has none.

    Examples:
        >>> student_interval([1.0, 2.0, 3.0]).text(1)
        '2.0 (-0.5 - 4.5)'
    """
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
        score=None if score is None else score.value,
        score_low=None if score is None else _known(score.low),
        score_high=None if score is None else _known(score.high),
        action_change=_mean(changes),
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
        score=None if score is None else score.value,
        score_low=None if score is None else _known(score.low),
        score_high=None if score is None else _known(score.high),
    )


def _combine(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of estimates, by the square-and-add rule; unknown limits stay unknown."""
    count = len(estimates)
    mean = sum(estimate.value for estimate in estimates) / count
    below = math.hypot(*(estimate.value - estimate.low for estimate in estimates)) / count
    above = math.hypot(*(estimate.high - estimate.value for estimate in estimates)) / count
    return Estimate(mean, mean - below, mean + above)


def _percent(summary: TaskSummary | GroupSummary) -> Estimate:
    if summary.score is None:
        rates = summary.success_rate, summary.low, summary.high
        return Estimate(*(100 * rate for rate in rates))
    limits = summary.score_low, summary.score_high
    return Estimate(summary.score, *(math.nan if limit is None else limit for limit in limits))


def _known(limit: float) -> float | None:
    """A limit for JSON, which has no NaN."""
    return None if math.isnan(limit) else limit


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values) / len(values)) if values else None


def _from_dict(kind: type[Any], data: Mapping[str, Any]) -> Any:
    known = {
        field.name: data[field.name]
        for field in fields(kind)
        if field.default is MISSING or field.name in data  # added in later versions
    }
    return kind(**known)
