"""What critics add: the page and the figures of what is stored."""

import json
from pathlib import Path

import pytest

from benchmarks.studies import guidance
from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store, write_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult

STUDIES = read_studies(Path(guidance.__file__).parent / "definitions")


def keep(store, study, variant, seed, arm_name, value, *, largest=10.0):
    """Store an arm of a training: the score of all episodes, or the share that succeeds."""
    study = STUDIES[study]
    found, arm = study.find(variant, arm_name, "seen")
    count, scored = study.episodes_of(arm), study.measures_scores
    rows = [
        EpisodeResult("task", goal, not scored and goal < value * count, False, 1.0, 9,
                      score=value + goal % 2 if scored else None)
        for goal in range(count)
    ]  # fmt: skip
    write_episodes(store.path(study, found, seed, arm), rows)
    about = {"seen_tasks": ["task"], "value_bounds": [0.0, 9.0], "largest_value": largest}
    store.training_path(study, found, seed).write_text(json.dumps(about))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1, 2):
        ours = "ours-hopper_medium_replay"
        keep(store, "guidance_d4rl", ours, seed, "own", 50.0 + seed)
        keep(store, "guidance_d4rl", ours, seed, "sampled", 20.0 + seed)
        keep(store, "guidance_d4rl", "chain-hopper_medium_replay", seed, "own", 40.0,
             largest=19.0 if seed == 1 else 1.0)  # fmt: skip
        keep(store, "mixed", "mixed", seed, "own", 0.8)
        keep(store, "mixed", "mixed", seed, "sampled", 0.4)
    return store


def test_figures(store):
    found = guidance.figures(STUDIES, store)
    assert found["hopper_default"] == pytest.approx(51.5)
    assert found["hopper_clone"] == pytest.approx(21.5)
    assert found["hopper_clone_seeds"] == 3
    assert found["hopper_gain"] == found["hopper_gain_low"] == pytest.approx(30)
    assert found["hopper_default_minus_chain"] == pytest.approx(11)
    assert "walker2d_default" not in found
    assert (found["mixed_named"], found["mixed_clone"]) == pytest.approx((80, 40))
    assert (found["runs"], found["diverged_runs"]) == (9, 1)


def test_the_page_says_what_is_missing(store):
    guidance.publish(STUDIES, store)
    assert not (store.root / "guidance.json").exists()  # figures are of committed files alone
    text = (store.root / "guidance.md").read_text()
    assert "| clone, ranked by its critics | 52 (49 - 54) [3] | - | - |" in text
    assert "| *ranked minus its own samples* | 30 (30 - 30) | - | - |" in text
    assert "| the same, its own samples | 40 (" in text
    assert "| medium-expert | hopper | walker2d | halfcheetah |" in text
