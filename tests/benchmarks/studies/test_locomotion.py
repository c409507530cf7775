"""Benchmarks on recorded locomotion: figures from kept episodes, and arms that are run once."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.studies import d4rl_levels, d4rl_velocity, locomotion
from benchmarks.studies.episodes import read_episodes, write_episodes
from llmdpd_torchrl.collection.halfcheetah import collect_gait
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, Estimate
from llmdpd_torchrl.utils.files import write_json

ROOT = Path(__file__).parents[3]


def keep(folder, label, policy, seed, control, **scores):
    episodes = [
        EpisodeResult(task, number, False, False, -9.5, 200, score=score, action_change=0.25)
        for task, values in scores.items()
        for number, score in enumerate(values)
    ]
    training = locomotion.Training(label, policy, seed, ())
    path = training.path(folder, control)
    write_json(folder / f"{training.name}-training.json", {"updates": 7 + seed})
    write_episodes(path, episodes)
    assert read_episodes(path) == episodes


def test_every_task_weighs_the_same_and_intervals_are_over_seeds(tmp_path):
    keep(tmp_path, "speeds", "ours", 0, "wrong", a=[10.0], b=[30.0, 50.0])
    keep(tmp_path, "speeds", "ours", 1, "wrong", a=[20.0], b=[40.0, 60.0])
    keep(tmp_path, "speeds", "oracle", 0, "both", a=[90.0], b=[100.0, 100.0])
    arms = locomotion.arm_estimates(tmp_path, "speeds", (0, 1, 2))
    half = 12.7062 * math.sqrt(50) / math.sqrt(2)
    assert arms["wrong_prompt"] == pytest.approx((30.0, 30.0 - half, 30.0 + half), abs=1e-3)
    figures = locomotion.as_figures(arms, "x_")
    assert set(figures) == {
        "x_wrong_prompt", "x_wrong_prompt_low", "x_wrong_prompt_high", "x_oracle",
    }  # fmt: skip
    assert figures["x_oracle"] == 95.0
    tasks = locomotion.task_estimates(tmp_path, "speeds", (0, 1))
    assert tasks["b"]["wrong_prompt"].value == 45.0


def test_the_table_of_speeds(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl_velocity, "KEEP", tmp_path)
    keep(tmp_path, "speeds", "ours", 0, "text", fast=[80.0, 90.0])
    table = d4rl_velocity.table()
    assert table.rows[0] == ("fast", "-", "-", "85 (-)", "-", "-", "-")
    assert table.rows[1][0] == "mean of four speeds"


def test_the_tables_of_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl_levels, "KEEP", tmp_path)
    keep(tmp_path, "shift-hopper", "ours", 0, "both", expert=[40.0])
    keep(tmp_path, "file-hopper_medium", "unprompted", 0, "none", medium=[45.0])
    keep(tmp_path, "file-hopper_medium", "unprompted", 1, "none", medium=[47.0])
    figures = d4rl_levels.figures()
    assert figures["shift_hopper_both"] == 40.0
    assert figures["file_hopper_medium_unprompted"] == 46.0
    assert (figures["policies"], figures["updates"], figures["episodes_per_task"]) == (3, 7, 1)
    shift, files = d4rl_levels.tables()
    assert shift.rows == [("hopper", "-", "-", "-", "-", "40 (-)", "-")]
    assert files.rows[0][1].startswith("46 (")


def test_shift_asks_for_what_is_not_trained_on():
    found = d4rl_levels.trainings(Path("data"), [0, 1], 100)
    assert len({training.name for training in found}) == len(found) == 2 * (3 * 2 + 9)
    for training in found:
        overrides = " ".join(training.overrides)
        if training.label.startswith("shift"):
            sources, held_out = overrides.split("data.held_out=")
            assert "expert" not in sources
            assert "_expert.hdf5" in held_out


def test_an_arm_is_trained_and_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locomotion, "ROOT", tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data = collect_gait(tmp_path / "gait.hdf5", episodes=2, steps=100, progress=False)
    overrides = (f"data.sources=[{data}]", "preset=smoke", "evaluation.workers=1",
                 "evaluation.max_steps=3", "progress=false")  # fmt: skip
    training = locomotion.Training("speeds", "oracle", 0, overrides)
    training.run(tmp_path / "keep", episodes=1)
    (path,) = (tmp_path / "keep").glob("*.csv")
    assert path.name == "speeds-oracle-seed0-oracle.csv"
    assert {e.task for e in read_episodes(path)} == {
        "halfcheetah-vel-0.75", "halfcheetah-vel-1.5", "halfcheetah-vel-2.25",
    }  # fmt: skip
    when = path.stat().st_mtime_ns
    training.run(tmp_path / "keep", episodes=1)
    assert path.stat().st_mtime_ns == when
    estimate = locomotion.arm_estimates(tmp_path / "keep", "speeds", (0,))["oracle"]
    assert isinstance(estimate, Estimate)
    assert locomotion.train_minutes(tmp_path / "keep", [training.name]) > 0


@pytest.mark.parametrize("name", ["d4rl_velocity", "d4rl_levels"])
def test_committed_figures_follow_from_the_kept_episodes(name):
    command = [sys.executable, "-m", f"benchmarks.studies.{name}", "--check"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
