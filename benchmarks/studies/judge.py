"""Means of stored episodes, their differences with intervals, and verdicts on claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.studies.registry import Arm, Study, Test, Variant
from benchmarks.studies.store import Store
from llmdpd_torchrl.evaluation.comparison import (
    Scores,
    crossed_difference,
    percents,
)
from llmdpd_torchrl.evaluation.statistics import (
    EpisodeResult,
    Estimate,
    student_interval,
    summarise,
)
from llmdpd_torchrl.utils.errors import ConfigError

CONFIRMED, REFUTED = "confirmed", "not confirmed: the opposite"
EQUAL = "not confirmed: no difference in any episode"
UNDECIDED, NOT_RUN = "not decidable at this budget", "not run yet"
#: From this many trainings on, an interval says something about a further one.
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Side:
    """The complete stored runs of a variant under one arm.

    Attributes:
        variant: the policy.
        arm: its prompts.
        runs: episodes by seed.
    """

    variant: Variant
    arm: Arm
    runs: dict[int, list[EpisodeResult]]

    @property
    def is_sampled(self) -> bool:
        """Whether a further seed is covered: three trainings, or a policy without training."""
        return len(self.runs) >= ENOUGH_SEEDS or self.variant.policy != "trained"


def side(store: Store, study: Study, variant: Variant, arm: Arm) -> Side:
    """All complete runs of an arm; there may be none."""
    runs = {}
    for seed in study.seeds_of(variant):
        episodes = store.episodes(study, variant, seed, arm)
        if episodes is not None:
            runs[seed] = episodes
    return Side(variant, arm, runs)


def sides_of(study: Study, store: Store) -> list[Side]:
    """All arms of all variants of a study, also those without a run."""
    return [side(store, study, variant, arm) for variant in study.variants for arm in variant.arms]


def scores(study: Study, of: Side, tasks: Sequence[str] = ()) -> Scores:
    """By task, [seeds, goals], on a scale of 100.

    Raises:
        ConfigError: if no episode is of a requested task.
    """
    there = {episode.task for episodes in of.runs.values() for episode in episodes}
    if absent := [task for task in tasks if task not in there]:
        raise ConfigError(f"{study.name} has no episodes of {absent[0]!r}: see claims.yaml")
    runs = [
        [episode for episode in episodes if not tasks or episode.task in tasks]
        for _, episodes in sorted(of.runs.items())
    ]
    return percents(runs, scored=study.measures_scores)


def seed_means(study: Study, of: Side) -> list[float]:
    """The mean of each seed; every task has the same weight."""
    by_task = [np.asarray(rows).mean(-1) for rows in scores(study, of).values()]
    return [float(mean) for mean in np.mean(by_task, axis=0)]


def mean(study: Study, of: Side) -> Estimate:
    """The mean of all seeds; its interval is of the episodes, or of scores over the seeds."""
    if study.measures_scores:
        return student_interval(seed_means(study, of))
    episodes = [episode for run in of.runs.values() for episode in run]
    group = summarise(episodes, list(dict.fromkeys(e.task for e in episodes)), []).seen
    assert group is not None
    return group.percent


def difference(
    study: Study, ours: Side, theirs: Side, tasks: Sequence[str] = ()
) -> Estimate | None:
    """Points of ours above theirs, over seeds and goals; ``None`` for other tasks or goals.

    The same policy under two prompts is compared seed by seed.
    """
    same = ours.variant == theirs.variant
    ours, theirs = _paired(ours, theirs)
    if not ours.runs or not theirs.runs:
        return None
    sides = [scores(study, s, tasks) for s in (ours, theirs)]
    shapes = [{task: np.shape(rows)[-1] for task, rows in found.items()} for found in sides]
    if not shapes[0] or shapes[0] != shapes[1]:
        return None
    return crossed_difference(*sides, same_policies=same)


def _paired(ours: Side, theirs: Side) -> tuple[Side, Side]:
    """For the same policy, the seeds that both sides have."""
    if ours.variant != theirs.variant:
        return ours, theirs
    seeds = ours.runs.keys() & theirs.runs.keys()
    return tuple(  # type: ignore[return-value]
        Side(s.variant, s.arm, {seed: s.runs[seed] for seed in seeds}) for s in (ours, theirs)
    )


def judge(store: Store, study: Study, test: Test) -> tuple[Estimate | None, str]:
    """The difference that a test is about, and the verdict: by its interval alone.

    Confirmed: all of it is above minus the margin, which is 0 unless the test says otherwise. Not
    confirmed: all of it is below, or the episodes are all the same. Undecided: otherwise, and
    where a trained policy has fewer than three seeds. What this machine may lack is named where
    nothing has been run yet.
    """
    sides = [side(store, study, *study.find(*key)) for key in (test.ours, test.theirs)]
    ours, theirs = _paired(*sides)
    found = difference(study, ours, theirs, test.tasks)
    if found is None:
        needs = [of.variant.needs for of in sides if of.variant.needs and not of.runs]
        return None, f"{NOT_RUN}: needs {needs[0]}" if needs else NOT_RUN
    if not (ours.is_sampled and theirs.is_sampled):
        return found, UNDECIDED
    if found.low > -test.margin:
        return found, CONFIRMED
    if max(map(abs, found)) < 1e-9:
        return found, EQUAL
    return found, REFUTED if found.high < -test.margin else UNDECIDED
