"""How long what is missing of a study will take."""

from __future__ import annotations

import json
import statistics

from benchmarks.studies.jobs import Job, Place
from llmdpd_torchrl.policies import LLMDPDPolicy

#: Measured with one thread of a shared core; used where nothing of the variant is stored yet.
SECONDS_AN_UPDATE, SECONDS_AN_EPISODE = 0.025, 0.2


def seconds_left(job: Job, place: Place) -> float:
    """An estimate of how long a job will still take, by what is stored of similar trainings."""
    missing = job.missing(place.store)
    if not missing:
        return 0.0
    known = [
        json.loads(path.read_text())
        for pattern in (f"{job.variant.name}-seed*", "*")
        for path in sorted((place.store.root / job.study.folder).glob(f"{pattern}-training.json"))
    ]
    seconds = 0.0
    is_there = LLMDPDPolicy.is_saved(job.folder(place) / "checkpoint")
    if job.variant.policy == "trained" and not is_there:
        updates = next(
            (int(s.partition("=")[2]) for s in reversed(job.variant.settings)
             if s.startswith("trainer.total_updates=")), 20_000,
        )  # fmt: skip
        rates = [k["train_seconds"] / k["updates"] for k in known
                 if k.get("train_seconds") and k.get("updates")]  # fmt: skip
        seconds += updates * (rates[0] if rates else SECONDS_AN_UPDATE)
    rates = [
        one["seconds"] / one["episodes"]
        for about in known
        for one in about.get("evaluation", {}).values()
    ]
    rate = statistics.mean(rates) if rates else SECONDS_AN_EPISODE
    tasks = {"unseen": 5, "seen": 45}
    episodes = sum(tasks[arm.group] * job.study.episodes_of(arm) for arm in missing)
    return seconds + rate * episodes
