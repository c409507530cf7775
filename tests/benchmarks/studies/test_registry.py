"""Definitions of experiments: what they say, and mistakes in them."""

from pathlib import Path

import pytest

from benchmarks.studies import __main__ as results
from benchmarks.studies import runner as work
from benchmarks.studies.registry import read_claims, read_experiments
from benchmarks.studies.store import Store
from llmdpd_torchrl.utils.errors import ConfigError
from tests.benchmarks.studies.tiny import HEAD, write

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "benchmarks" / "studies" / "definitions"


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


def test_a_claim_about_an_arm_that_does_not_exist_is_refused(tiny, tmp_path):
    path = tmp_path / "claims.yaml"
    test = "{where: here, experiment: tiny, ours: ours/text, theirs: theirs/both}"
    path.write_text(f"claims: [{{claim: it helps, tests: [{test}]}}]")
    with pytest.raises(ConfigError, match="'it helps': tiny has no arm ours/text/unseen"):
        read_claims(path, {"tiny": tiny[0]})
