"""A study is run, stored, not run twice, and resumed where it was stopped."""

import dataclasses
import json
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.studies import __main__ as results
from benchmarks.studies import arm_videos, runner
from benchmarks.studies.jobs import jobs
from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store, read_episodes, write_episodes
from llmdpd_torchrl.evaluation.video import rendering_backend
from tests.benchmarks.studies.tiny import HEAD, write

ROOT = Path(__file__).parents[3]
SMOKE = HEAD.replace("[0, 1, 2]", "[3]").replace("episodes: 4", "episodes: 2") + (
    "preset: smoke\noverrides: [progress=false, data.workers=1, trainer.total_updates=20, "
    "network.text_dropout=0.2, network.trajectory_dropout=0.2]\nreference: {arm: both}\n"
    "variants:\n"
    "  small: {arms: [both/seen, {gain: 0.9}]}\n"
    "  untrained: {policy: retrieve_and_play, overrides: [prompt=trajectory], arms: [both]}\n"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete study, run once, and the command line that ran it."""
    folder = tmp_path_factory.mktemp("comparison")
    write(folder / "definitions", smoke=SMOKE)
    (folder / "claims.yaml").write_text("claims: []")
    arguments = [
        "smoke", "workers=1", f"definitions={folder / 'definitions'}",
        f"store={folder / 'stored'}", f"output={folder / 'output'}", f"data={folder / 'data'}",
        f"page={folder / 'docs' / 'page.md'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "TASKS_AT_A_TIME", 1)
        assert results.main(arguments) == 0
    return folder, arguments


@pytest.mark.integration
def test_a_study_is_run_and_stored(finished):
    folder, _ = finished
    names = {path.name for path in (folder / "stored" / "runs").glob("*")}
    assert names == {
        "small-seed3-both-seen.csv", "small-seed3-both_gain_0.9-unseen.csv",
        "small-seed3-training.json", "untrained-seed3-both-unseen.csv",
        "untrained-seed3-training.json",
    }  # fmt: skip
    about = json.loads((folder / "stored" / "runs" / "small-seed3-training.json").read_text())
    assert {
        "command", "settings", "seed", "updates", "train_seconds", "parameters", "fingerprint",
        "data_hash", "git_revision", "machine", "seen_tasks", "unseen_tasks", "evaluation",
        "value_bounds", "largest_value", "curve",
    } == set(about)  # fmt: skip
    assert about["curve"]["updates"][-1] == 20
    assert about["largest_value"] == pytest.approx(abs(about["curve"]["q_value"][-1]), abs=1e-3)
    assert about["value_bounds"][0] < about["value_bounds"][1]
    assert about["updates"] == 20
    assert about["train_seconds"] > 0
    assert about["parameters"] > 1000
    assert about["evaluation"]["both-seen"]["episodes"] == 4
    assert str(folder) not in json.dumps(about)
    text = (folder / "docs" / "page.md").read_text()
    assert "[3](../stored/runs/small-seed3-both_gain_0.9-unseen.csv)" in text
    assert "Not run yet:" not in text


@pytest.mark.integration
def test_arms_have_videos(finished, capsys):
    folder, arguments = finished
    shared = [a for a in arguments if a.startswith(("definitions=", "store=", "output=", "data="))]
    command = [
        *shared, "study=smoke", "fold=", "variant=small", "seed=3", "tiles=1",
        f"videos={folder / 'videos'}",
    ]  # fmt: skip
    assert arm_videos.main([*command, "arms=[both_gain_0.9]"]) == 0
    path = folder / "videos" / "unseen_both_gain_0.9.mp4"
    said = capsys.readouterr().out
    assert path.stat().st_size > 1000 if rendering_backend()[0] else "no videos" in said
    assert arm_videos.main([*command, "arms=[sung]"]) == 2
    assert "arms has 'sung'" in capsys.readouterr().err


@pytest.mark.integration
def test_nothing_is_done_twice(finished, capsys):
    folder, arguments = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "stored" / "runs").glob("*")}
    assert results.main(arguments) == 0
    out = capsys.readouterr().out
    assert "small-seed3: stored" in out
    assert results.main(["--plan", *arguments]) == 0
    assert capsys.readouterr().out == ""
    assert results.main(["--list", *arguments]) == 0
    assert capsys.readouterr().out == "smoke: 3 of 3 arms are there\n"
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "stored" / "runs").glob("*")}


@pytest.mark.integration
def test_an_evaluation_that_was_stopped_goes_on(finished, monkeypatch):
    folder, arguments = finished
    path = folder / "stored" / "runs" / "small-seed3-both-seen.csv"
    complete = path.read_bytes()
    write_episodes(path, read_episodes(path)[:2])  # of the first task of two
    evaluated = []

    def spy(run, tasks, *arguments):
        evaluated.extend(tasks)
        return original(run, tasks, *arguments)

    original = runner.evaluate_tasks
    monkeypatch.setattr(runner, "evaluate_tasks", spy)
    monkeypatch.setattr(runner, "TASKS_AT_A_TIME", 1)
    assert results.main(arguments) == 0
    assert evaluated == ["window-open-v3"]
    assert path.read_bytes() == complete


@pytest.mark.integration
def test_what_another_process_is_at_is_left_to_it(finished, capsys):
    folder, arguments = finished
    path = folder / "stored" / "runs" / "untrained-seed3-both-unseen.csv"
    before = path.read_bytes()
    path.unlink()
    with FileLock(folder / "output" / "untrained-seed3" / ".lock"):
        assert results.main(arguments) == 0
    assert "untrained-seed3: another process is working on it" in capsys.readouterr().out
    assert not path.exists()
    assert results.main(["variants=[untrained]", *arguments]) == 0
    assert path.read_bytes() == before


@pytest.mark.integration
def test_what_is_stored_of_other_settings_or_data_is_refused(finished, capsys):
    folder, arguments = finished
    path = folder / "stored" / "runs" / "small-seed3-training.json"
    about = json.loads(path.read_text())
    csv = folder / "stored" / "runs" / "small-seed3-both-seen.csv"
    rows = csv.read_bytes()
    csv.unlink()
    try:
        for key, value, message in (
            ("settings", ["preset=quick"], "made with other settings, preset=quick; delete small"),
            ("fingerprint", "0" * 16, "what is stored is of another training"),
        ):
            path.write_text(json.dumps({**about, key: value}))
            assert results.main(arguments) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert message in error
    finally:
        path.write_text(json.dumps(about))
        csv.write_bytes(rows)


def test_the_time_of_an_interrupted_training_is_added_up(tmp_path, monkeypatch):
    """A training that is stopped notes its time; of one that was killed it is not known."""

    @dataclasses.dataclass
    class Fake:
        output: Path = tmp_path
        trained: bool = False
        seconds: dict = dataclasses.field(default_factory=lambda: {"train": 2.0})

    def stop(run, stage):
        (tmp_path / "training").mkdir(exist_ok=True)
        raise SystemExit(143)

    def finish(run, stage):
        (tmp_path / "training").rmdir()
        run.trained = True

    monkeypatch.setattr(runner, "run_stage", stop)
    with pytest.raises(SystemExit):
        runner._timed_training(Fake())
    spent = json.loads((tmp_path / "spent.json").read_text())["seconds"]
    (tmp_path / "spent.json").write_text(json.dumps({"seconds": spent + 5}))
    monkeypatch.setattr(runner, "run_stage", finish)
    assert runner._timed_training(Fake()) == pytest.approx(7.0, abs=0.2)
    (tmp_path / "training").mkdir()  # as a killed one leaves it
    assert runner._timed_training(Fake()) is None


def test_data_are_in_the_users_cache_or_where_they_are_said_to_be(tmp_path):
    text = HEAD + (
        "arms: [both]\nvariants: {ours: {}, others: {overrides: "
        "['data.folder={data}_noisy', 'data.noise_levels=[1.0]']}}"
    )
    study = read_studies(write(tmp_path / "definitions", tiny=text))["tiny"]
    for data, folders in (
        (None, [None, None]),
        (tmp_path / "mine", [f"{tmp_path}/mine", f"{tmp_path}/mine_noisy"]),
    ):
        place = runner.Place(Store(tmp_path), data, tmp_path)
        read = [job.read(place).data for job in jobs(study, (), (0,))]
        assert [found.folder for found in read] == folders
        assert read[1].noise_levels == [1.0]


@pytest.mark.integration
def test_stored_trainings_are_recognised(tmp_path):
    """By settings, defaults and data: renaming a setting must not lose what is stored.

    Those that compose conditioning=retrieved were stored before prompts were looked up in several
    frames: they are other trainings now, and the runner says so before it adds to them.
    """
    studies = read_studies(ROOT / "benchmarks" / "studies" / "definitions")
    place = runner.Place(Store(ROOT / "benchmarks" / "results"), tmp_path, tmp_path)
    unknown = [Path(path) for path in runner.adopt_renames(studies, place, write=False)]
    assert {path.parent.name for path in unknown} == {"runs"}
    assert not [path for path in unknown if "pooled" in path.name]


def test_the_settings_of_stored_trainings_are_those_of_the_definitions():
    store, compared = Store(ROOT / "benchmarks" / "results"), 0
    for study in read_studies(ROOT / "benchmarks" / "studies" / "definitions").values():
        for variant in study.variants:
            for seed in study.seeds_of(variant):
                if found := runner.distinct_settings(store.training(study, variant, seed)):
                    assert found == " ".join(variant.settings)
                    compared += 1
    assert compared > 100


def test_fingerprints_of_stored_trainings_can_follow_a_rename(tmp_path):
    text = HEAD.replace("[0, 1, 2]", "[0]") + "arms: [both]\nvariants: {ours: {}}\npreset: ml45"
    studies = read_studies(write(tmp_path / "definitions", tiny=text))
    place = runner.Place(Store(tmp_path), tmp_path, tmp_path)
    path = place.store.training_path(studies["tiny"], studies["tiny"].variants[0], 0)
    path.parent.mkdir()
    about = {"settings": ["preset=ml45"], "data_hash": "0", "fingerprint": "of other names"}
    path.write_text(json.dumps(about))
    assert runner.adopt_renames(studies, place, write=True) == [str(path)]
    stored = json.loads(path.read_text())
    assert {**stored, "fingerprint": about["fingerprint"]} == about
    assert runner.adopt_renames(studies, place, write=False) == []
    studies = read_studies(write(tmp_path / "definitions", tiny=text.replace("ml45", "quick")))
    assert runner.adopt_renames(studies, place, write=False) == [str(path)]
