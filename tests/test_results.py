"""The comparison: what it would run, that nothing is run twice, and what its page says."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from llmdpd_torchrl.errors import ConfigError
from llmdpd_torchrl.evaluation.statistics import EpisodeResult

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import judgement  # noqa: E402 (after the path)
import page  # noqa: E402
import results  # noqa: E402
import work  # noqa: E402
from definitions import read_claims, read_experiments  # noqa: E402
from episodes import read_episodes, write_episodes  # noqa: E402
from store import Store  # noqa: E402

CONFIGS = ROOT / "configs" / "experiment"
HEAD = (
    "title: Tiny\nquestion: Does it run?\nof_the_paper: nothing.\nseeds: [0, 1, 2]\nepisodes: 4\n"
)


def test_the_page_follows_from_the_kept_files_byte_for_byte(tmp_path):
    experiments = read_experiments(CONFIGS)
    claims = read_claims(ROOT / "configs" / "claims.yaml", experiments)
    store = Store(ROOT / "benchmarks" / "results")
    text = page.build_page(experiments, claims, store, "../benchmarks/results")
    assert text == (ROOT / "docs" / "results.md").read_text()
    table = page.summary(experiments["comparison"], store).markdown()
    assert table in (ROOT / "README.md").read_text()


def test_the_figures_follow_from_the_kept_files(capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr().out


def test_everything_that_is_defined_would_run(tmp_path):
    """All settings of all experiments, composed and checked as before a run."""
    place = work.Place(Store(tmp_path), tmp_path / "data", tmp_path)
    has_algorithms = (ROOT / "configs" / "algorithm").exists()
    count = 0
    for experiment in read_experiments(CONFIGS).values():
        names = [v.name for v in experiment.variants]
        jobs = [] if experiment.script else work.jobs(experiment, names, [0])
        jobs = [
            j for j in jobs if has_algorithms or "algorithm=" not in " ".join(j.settings(place))
        ]
        work.check(jobs, place)
        count += len(jobs)
    assert count > 20
    assert not (tmp_path / "data").exists()


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "can not be read"),
        ("- a", "it must be a mapping"),
        (HEAD, "variants is missing"),
        (HEAD + "colour: red\nvariants: {a: {arms: [both]}}", "unknown key 'colour'"),
        (HEAD + "variants: {a: {arms: [all]}}", "variant 'a': unknown control 'all'"),
        (HEAD + "variants: {a: {arms: [both/mine]}}", "'mine' is no group of tasks"),
        (HEAD + "variants: {a: {arms: [{speed: 2}]}}", "an arm is of control, group"),
        (HEAD + "variants: {a: {arms: [both, both/unseen]}}", "at least one arm, each once"),
        (HEAD + "variants: {a: {label: A}}", "at least one arm"),
        (HEAD + "variants: {a: {arms: [both], overrides: [seed]}}", "of the form key=value"),
        (HEAD + "variants: {a: {arms: [both], policy: none}}", "policy is 'none'"),
        (HEAD + "variants: {a: {use: other, arms: [both]}}", "'other' does not define it"),
        (HEAD + "variants: {a: {arms: both}}", "arms is 'both': it must be a list"),
        (HEAD + "arms: [both]\nreference: {variant: b}\nvariants: {a: {}}", "none of the variants"),
        (HEAD.replace("[0, 1, 2]", "[one]") + "variants: {a: {arms: [both]}}", "seeds is ['one']"),
        (HEAD.replace("4", "0") + "variants: {a: {arms: [both]}}", "at least 1 of each task"),
        (HEAD + "measure: joy\nvariants: {a: {arms: [both]}}", "measure is 'joy'"),
    ],
)
def test_a_mistake_in_an_experiment_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        read_experiments(write(tmp_path, tiny=text))
    assert message in str(error.value)
    assert "tiny.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_has_a_line_and_the_command_ends_with_2(tmp_path, capsys):
    write(tmp_path, a="- a", b=HEAD + "variants: {a: {arms: [all]}}")
    assert results.main([f"configs={tmp_path}", "--list"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("experiment=none", "experiment is 'none': use one of comparison"),
        ("colour=red", "colour=red: give key=value"),
        ("comparison", "comparison: give key=value"),
        ("seeds=zero", "seeds is 'zero': give a list"),
        ("variants=[1]", "variants is [1]: give a list"),
        ("workers=many", "workers is 'many'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(setting, message, capsys):
    assert results.main(["--plan", setting]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_equal_names_are_equal_settings(tmp_path):
    one = HEAD + "arms: [both]\nvariants: {a: {overrides: [loss.lmbda=0.1]}}"
    write(tmp_path, one=one, two=one.replace("0.1", "0.2"))
    with pytest.raises(ConfigError, match="'a' is not the same in one and two"):
        read_experiments(tmp_path)
    write(tmp_path, two=HEAD + "variants: {a: {use: one, arms: [none]}}")
    experiments = read_experiments(tmp_path)
    settings = [experiments[name].variants[0].settings for name in ("one", "two")]
    assert settings[0] == settings[1] == ("preset=ml45", "loss.lmbda=0.1")
    assert [arm.name for arm in experiments["two"].variants[0].arms] == ["none"]


def test_an_arms_name_says_what_is_shown(tmp_path):
    arms = "[{demonstrations: 2}, {noise: 0.5, group: seen}, none]"
    write(tmp_path, tiny=HEAD + f"variants: {{a: {{arms: {arms}}}}}")
    first, second, third = read_experiments(tmp_path)["tiny"].variants[0].arms
    assert (first.name, first.group) == ("both_demonstrations_2", "unseen")
    assert first.overrides == ("evaluation.control=both", "evaluation.demonstrations=2")
    assert (second.name, second.group) == ("both_noise_0.5", "seen")
    assert second.overrides[1] == "data.support_noise_levels=[0.5]"
    assert third.overrides == ("evaluation.control=none",)


@pytest.fixture
def tiny(tmp_path):
    """Two variants with kept episodes of two tasks, which a test writes with ``keep``."""
    text = HEAD + (
        "arms: [both, none]\nreference: {variant: ours}\n"
        "variants: {ours: {label: Ours}, theirs: {label: Theirs, arms: [both]}}"
    )
    experiment = read_experiments(write(tmp_path / "configs", tiny=text))["tiny"]
    store = Store(tmp_path / "results")

    def keep(variant, seed, shown, *successes, group="unseen"):
        found, arm = experiment.find(variant, shown, group)
        rows = [
            EpisodeResult(task, goal, bool(success), bool(success), 1.0, 9)
            for task, goals in zip(("a", "b"), successes, strict=False)
            for goal, success in enumerate(goals)
        ]
        write_episodes(store.path(experiment, found, seed, arm), rows)
        about = {"unseen_tasks": ["a", "b"], "train_seconds": 60.0 + seed,
                 "parameters": 7, "updates": 10}  # fmt: skip
        store.training_path(experiment, found, seed).write_text(json.dumps(about))

    return experiment, store, keep


def test_only_whole_arms_count_and_further_goals_do_not(tiny):
    experiment, store, keep = tiny
    ours = experiment.variants[0]
    both = ours.arms[0]
    keep("ours", 0, "both", [1, 1, 1, 1])  # of one task of two
    assert store.episodes(experiment, ours, 0, both) is None
    keep("ours", 0, "both", [1, 1, 1], [1, 1, 1])  # three goals of four
    assert store.missing(experiment, ours, 0) == list(ours.arms)
    keep("ours", 0, "both", [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1])
    assert len(store.episodes(experiment, ours, 0, both)) == 8
    assert judgement.mean(experiment, judgement.side(store, experiment, ours, both)).value == 50
    assert store.missing(experiment, ours, 0) == [ours.arms[1]]


def test_the_page_says_where_ours_loses_and_what_is_missing(tiny):
    experiment, store, keep = tiny
    for seed in (0, 1):
        keep("ours", seed, "both", [0, 0, 0, 1], [0, 0, 1, 1])
        keep("theirs", seed, "both", [1, 1, 1, 1], [1, 1, 1, 1])
    keep("ours", 0, "none", [0, 0, 0, 1], [0, 0, 1, 1])
    text = page.build_page({"tiny": experiment}, [], store, "kept")
    finding = next(line for line in text.splitlines() if line.startswith("**Finding"))
    assert "Ours loses to Theirs by 62 (" in finding
    assert "is not told apart from itself shown none (+0 (+0 - +0))" in finding
    assert "- Ours: seed 2; seed 1: none on unseen tasks" in text
    assert "| Theirs | both | 100 (" in text
    assert "| 2 (100 - 100) | 16 | 10 | 60 | 7 | +62 (" in text
    assert "[1](kept/runs/theirs-seed1-both-unseen.csv)" in text


def test_the_same_policy_is_judged_by_the_seeds_that_both_arms_have(tiny, tmp_path):
    experiment, store, keep = tiny
    test = "{where: here, experiment: tiny, ours: ours/both, theirs: ours/none}"
    (tmp_path / "claims.yaml").write_text(f"claims: [{{claim: it helps, tests: [{test}]}}]")
    (claim,) = read_claims(tmp_path / "claims.yaml", {"tiny": experiment})
    for seed in range(3):
        keep("ours", seed, "both", [1, 1, 1, 1], [1, 1, 1, 1])
    for seed in range(2):
        keep("ours", seed, "none", [0, 0, 0, 0], [0, 0, 0, 0])
        assert judgement.judge(store, experiment, claim.tests[0])[1] == judgement.UNDECIDED
    keep("ours", 2, "none", [0, 0, 0, 0], [0, 0, 0, 0])
    assert judgement.judge(store, experiment, claim.tests[0])[1] == judgement.CONFIRMED
    absent = dataclasses.replace(claim.tests[0], tasks=("c",))
    with pytest.raises(ConfigError, match="tiny has no episodes of 'c'"):
        judgement.judge(store, experiment, absent)


def test_a_variant_can_have_a_reference_of_its_own_and_groups_other_names(tmp_path):
    text = HEAD + (
        "groups: {unseen: held-out}\nreference: {variant: a, also: [b]}\narms: [both]\n"
        "variants: {a: {}, b: {}, c: {reference: b}}"
    )
    experiment = read_experiments(write(tmp_path, tiny=text))["tiny"]
    rows = [EpisodeResult("t", goal, goal < 2, goal < 2, 1.0, 9) for goal in range(4)]
    store = Store(tmp_path / "results")
    for variant in experiment.variants:
        write_episodes(store.path(experiment, variant, 0, variant.arms[0]), rows)
    text = page.build_page({"tiny": experiment}, [], store, "kept")
    equal = "(+0 (+0 - +0))"
    assert f"On held-out tasks, a [one seed] is not told apart from b [one seed] {equal}." in text
    assert (
        f"b [one seed] is not told apart from c [one seed] {equal}, a [one seed] {equal}." in text
    )
    assert "| variant | shown | held-out: success, % |" in text
    for wrong in ("{reference: d}", "{}, d: {reference: e}"):
        write(tmp_path, tiny=HEAD + f"arms: [both]\nvariants: {{a: {wrong}}}")
        with pytest.raises(ConfigError, match="none of the variants"):
            read_experiments(tmp_path)


def test_the_settings_of_the_rivals_are_the_best_that_were_tried():
    """By the mean of both groups of tasks, as the experiment says."""
    experiment = read_experiments(CONFIGS)["settings"]
    store = Store(ROOT / "benchmarks" / "results")
    for name in ("td3_bc", "cql"):
        tried = [v for v in experiment.variants if v.name.startswith(f"settings_{name}")]
        means = {
            variant: sum(
                judgement.mean(experiment, judgement.side(store, experiment, variant, arm)).value
                for arm in variant.arms
            )
            for variant in tried
        }
        best = max(means, key=means.__getitem__)
        cfg = OmegaConf.load(ROOT / "configs" / "algorithm" / f"{name}.yaml")
        chosen = dict(s.split("=") for s in best.settings if s.startswith("loss."))
        assert chosen
        for key, value in chosen.items():
            assert OmegaConf.select(cfg, key) == float(value), (name, key)


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "verdict"),
    [
        ([1, 1, 1, 1], [0, 0, 0, 1], 0, judgement.CONFIRMED),
        ([0, 0, 0, 1], [1, 1, 1, 1], 0, judgement.REFUTED),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0, judgement.UNDECIDED),
        ([1, 1, 0, 0], [1, 1, 0, 0], 0, judgement.EQUAL),  # which is not better
        ([1, 1, 0, 0], [1, 1, 0, 0], 5, judgement.CONFIRMED),  # but it is enough
        ([0, 0, 0, 1], [1, 1, 1, 1], 5, judgement.REFUTED),
    ],
)
def test_the_interval_alone_decides_about_a_claim(tiny, tmp_path, ours, theirs, margin, verdict):
    experiment, store, keep = tiny
    test = "{where: here, experiment: tiny, ours: ours/both, theirs: theirs/both, margin: MARGIN}"
    path = tmp_path / "claims.yaml"
    path.write_text(
        f"claims: [{{claim: it helps, tests: [{test.replace('MARGIN', str(margin))}]}}]"
    )
    (claim,) = read_claims(path, {"tiny": experiment})
    assert judgement.judge(store, experiment, claim.tests[0]) == (None, judgement.NOT_RUN)
    keep("ours", 0, "both", ours, ours)
    keep("theirs", 0, "both", theirs, theirs)
    # Of one or two seeds each, nothing is said about another training.
    for seed in (1, 2):
        assert judgement.judge(store, experiment, claim.tests[0])[1] == judgement.UNDECIDED
        keep("ours", seed, "both", ours, ours)
        keep("theirs", seed, "both", theirs, theirs)
    assert judgement.judge(store, experiment, claim.tests[0])[1] == verdict
    row = page.claim_table({"tiny": experiment}, [claim], store).rows[0]
    assert row[:3] == ("it helps", "[here](#tiny)", "Ours: both against Theirs: both")
    assert row[4] == verdict


def test_a_claim_about_an_arm_that_does_not_exist_is_refused(tiny, tmp_path):
    path = tmp_path / "claims.yaml"
    test = "{where: here, experiment: tiny, ours: ours/text, theirs: theirs/both}"
    path.write_text(f"claims: [{{claim: it helps, tests: [{test}]}}]")
    with pytest.raises(ConfigError, match="'it helps': tiny has no arm ours/text/unseen"):
        read_claims(path, {"tiny": tiny[0]})


SMOKE = HEAD.replace("[0, 1, 2]", "[3]").replace("episodes: 4", "episodes: 2") + (
    "preset: smoke\noverrides: [progress=false, data.workers=1, trainer.total_updates=20, "
    "network.text_dropout=0.2, network.trajectory_dropout=0.2]\nreference: {arm: both}\n"
    "variants:\n"
    "  small: {arms: [both/seen, {gain: 0.9}]}\n"
    "  untrained: {policy: retrieve_and_play, overrides: [prompt=trajectory], arms: [both]}\n"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole experiment, run once, and the command line that ran it."""
    folder = tmp_path_factory.mktemp("comparison")
    write(folder / "configs", smoke=SMOKE)
    (folder / "claims.yaml").write_text("claims: []")
    arguments = [
        "experiment=smoke", "workers=1", f"configs={folder / 'configs'}",
        f"keep={folder / 'kept'}", f"output={folder / 'output'}", f"data={folder / 'data'}",
        f"page={folder / 'docs' / 'page.md'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "TASKS_AT_A_TIME", 1)
        assert results.main(arguments) == 0
    return folder, arguments


def test_an_experiment_is_run_and_kept(finished):
    folder, _ = finished
    names = {path.name for path in (folder / "kept" / "runs").glob("*")}
    assert names == {
        "small-seed3-both-seen.csv", "small-seed3-both_gain_0.9-unseen.csv",
        "small-seed3-training.json", "untrained-seed3-both-unseen.csv",
        "untrained-seed3-training.json",
    }  # fmt: skip
    about = json.loads((folder / "kept" / "runs" / "small-seed3-training.json").read_text())
    assert {
        "command", "settings", "seed", "updates", "train_seconds", "parameters", "fingerprint",
        "data_hash", "git_revision", "machine", "seen_tasks", "unseen_tasks", "evaluation",
    } == set(about)  # fmt: skip
    assert about["updates"] == 20
    assert about["train_seconds"] > 0
    assert about["parameters"] > 1000
    assert about["evaluation"]["both-seen"]["episodes"] == 4
    assert str(folder) not in json.dumps(about)
    text = (folder / "docs" / "page.md").read_text()
    assert "[3](../kept/runs/small-seed3-both_gain_0.9-unseen.csv)" in text
    assert "Not run yet:" not in text


def test_nothing_is_done_twice(finished, capsys):
    folder, arguments = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "kept" / "runs").glob("*")}
    assert results.main(arguments) == 0
    out = capsys.readouterr().out
    assert "small-seed3: kept" in out
    assert results.main(["--plan", *arguments]) == 0
    assert capsys.readouterr().out == ""
    assert results.main(["--list", *arguments]) == 0
    assert capsys.readouterr().out == "smoke: 3 of 3 arms are there\n"
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "kept" / "runs").glob("*")}


def test_an_evaluation_that_was_stopped_goes_on(finished, monkeypatch):
    folder, arguments = finished
    path = folder / "kept" / "runs" / "small-seed3-both-seen.csv"
    whole = path.read_bytes()
    write_episodes(path, read_episodes(path)[:2])  # of the first task of two
    played = []

    def play(run, tasks, *arguments):
        played.extend(tasks)
        return original(run, tasks, *arguments)

    original = work.play
    monkeypatch.setattr(work, "play", play)
    monkeypatch.setattr(work, "TASKS_AT_A_TIME", 1)
    assert results.main(arguments) == 0
    assert played == ["window-open-v3"]
    assert path.read_bytes() == whole


def test_what_another_process_is_at_is_left_to_it(finished, capsys):
    folder, arguments = finished
    path = folder / "kept" / "runs" / "untrained-seed3-both-unseen.csv"
    kept = path.read_bytes()
    path.unlink()
    with FileLock(folder / "output" / "untrained-seed3" / ".lock"):
        assert results.main(arguments) == 0
    assert "untrained-seed3: another process is at it" in capsys.readouterr().out
    assert not path.exists()
    assert results.main(["variants=[untrained]", *arguments]) == 0
    assert path.read_bytes() == kept


def test_what_is_kept_of_other_settings_or_data_is_refused(finished, capsys):
    folder, arguments = finished
    path = folder / "kept" / "runs" / "small-seed3-training.json"
    about = json.loads(path.read_text())
    csv = folder / "kept" / "runs" / "small-seed3-both-seen.csv"
    rows = csv.read_bytes()
    csv.unlink()
    try:
        for key, value, message in (
            ("settings", ["preset=quick"], "made with other settings, preset=quick; delete small"),
            ("fingerprint", "0" * 16, "what is kept is of another training"),
        ):
            path.write_text(json.dumps({**about, key: value}))
            assert results.main(arguments) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert message in error
    finally:
        path.write_text(json.dumps(about))
        csv.write_bytes(rows)


def test_the_time_of_an_interrupted_training_is_added_up(tmp_path, monkeypatch):
    """A training that is told to stop notes its time; of one that was killed it is not known."""

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

    monkeypatch.setattr(work, "run_stage", stop)
    with pytest.raises(SystemExit):
        work._timed_training(Fake())
    spent = json.loads((tmp_path / "spent.json").read_text())["seconds"]
    (tmp_path / "spent.json").write_text(json.dumps({"seconds": spent + 5}))
    monkeypatch.setattr(work, "run_stage", finish)
    assert work._timed_training(Fake()) == pytest.approx(7.0, abs=0.2)
    (tmp_path / "training").mkdir()  # as a killed one leaves it
    assert work._timed_training(Fake()) is None
