"""A study of which a test writes the episodes itself."""

import json

import pytest

from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store, write_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from tests.benchmarks.studies.tiny import HEAD, write


@pytest.fixture
def tiny(tmp_path):
    """Two variants with stored episodes of two tasks, which a test writes with ``keep``."""
    text = HEAD + (
        "arms: [both, none]\nreference: {variant: ours}\n"
        "variants: {ours: {label: Ours}, theirs: {label: Theirs, arms: [both]}}"
    )
    study = read_studies(write(tmp_path / "configs", tiny=text))["tiny"]
    store = Store(tmp_path / "results")

    def keep(variant, seed, prompts, *successes, group="unseen"):
        found, arm = study.find(variant, prompts, group)
        rows = [
            EpisodeResult(task, goal, bool(success), bool(success), 1.0, 9)
            for task, goals in zip(("a", "b"), successes, strict=False)
            for goal, success in enumerate(goals)
        ]
        write_episodes(store.path(study, found, seed, arm), rows)
        about = {"unseen_tasks": ["a", "b"], "train_seconds": 60.0 + seed,
                 "parameters": 7, "updates": 10}  # fmt: skip
        store.training_path(study, found, seed).write_text(json.dumps(about))

    return study, store, keep
