"""The registry of studies: definitions, and mistakes in them."""

import json
import re
from pathlib import Path

import h5py
import pytest

from benchmarks.studies import __main__ as results
from benchmarks.studies import runner
from benchmarks.studies.jobs import jobs
from benchmarks.studies.registry import read_claims, read_studies
from benchmarks.studies.store import Store
from llmdpd_torchrl.utils.errors import ConfigError
from tests.benchmarks.studies.tiny import HEAD, write

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "benchmarks" / "studies" / "definitions"


@pytest.mark.integration
def test_everything_that_is_defined_would_run(tmp_path):
    """All settings of all studies, composed and checked as before a run."""
    speeds = tmp_path / "speeds.hdf5"  # its attribute names the tasks; nothing else is read
    tasks = [
        {"target_velocity": speed, "split": split, "ref_min": -1.0, "ref_max": 0.0}
        for speed, split in ((1.0, "train"), (2.0, "test"), (3.0, "train"), (4.0, "test"))
    ]
    with h5py.File(speeds, "w") as file:
        file.attrs["tasks"] = json.dumps(tasks)
    count = 0
    for study in read_studies(CONFIGS).values():
        data = speeds if study.folder == "d4rl_velocity" else tmp_path / "data"
        place = runner.Place(Store(tmp_path), data, tmp_path)
        # Folds differ in their tasks alone: one is enough.
        folds = ["dev1"] if any(variant.fold for variant in study.variants) else []
        names = list(dict.fromkeys(variant.base for variant in study.variants))
        wanted = jobs(study, names, [0], folds)
        runner.check(wanted, place)
        count += len(wanted)
    assert count > 40
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "cannot be read"),
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
        (HEAD + "family: joy\nvariants: {a: {arms: [both]}}", "family is 'joy'"),
    ],
)
def test_a_mistake_in_a_study_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        read_studies(write(tmp_path, tiny=text))
    assert message in str(error.value)
    assert "tiny.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_has_a_line_and_the_command_ends_with_2(tmp_path, capsys):
    write(tmp_path, a="- a", b=HEAD + "variants: {a: {arms: [all]}}")
    assert results.main([f"definitions={tmp_path}", "--list"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "study is 'none': use one of comparison"),
        ([], "study is '': use one of comparison"),
        (["comparison", "colour=red"], "colour=red: give key=value"),
        (["comparison", "seeds=["], "seeds cannot be read"),
        (["comparison", "seeds=zero"], "seeds is 'zero': give a list"),
        (["comparison", "variants=[1]"], "variants is [1]: give a list"),
        (["comparison", "workers=many"], "workers is 'many'"),
        (["comparison", "variants=[none]"], "study comparison has no variant 'none'"),
        (["speeds", "seeds=[7]"], "study speeds needs data=PATH"),
        (["hopper", "seeds=[a]"], "seeds is ['a']: give a list"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message, capsys):
    assert results.main(["--plan", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_equal_names_are_equal_settings(tmp_path):
    one = HEAD + "arms: [both]\nvariants: {a: {overrides: [loss.lmbda=0.1]}}"
    write(tmp_path, one=one, two=one.replace("0.1", "0.2"))
    with pytest.raises(ConfigError, match="'a' is not the same in one and two"):
        read_studies(tmp_path)
    write(tmp_path, two=HEAD + "variants: {a: {use: one, arms: [none]}}")
    studies = read_studies(tmp_path)
    settings = [studies[name].variants[0].settings for name in ("one", "two")]
    assert settings[0] == settings[1] == ("preset=ml45", "loss.lmbda=0.1")
    assert [arm.name for arm in studies["two"].variants[0].arms] == ["none"]


def test_an_arm_is_named_after_its_prompts(tmp_path):
    arms = "[{demonstrations: 2}, {noise: 0.5, group: seen}, none, {control: wrong, name: mine}]"
    write(tmp_path, tiny=HEAD + f"variants: {{a: {{arms: {arms}}}}}")
    first, second, third, last = read_studies(tmp_path)["tiny"].variants[0].arms
    assert (first.name, first.group) == ("both_demonstrations_2", "unseen")
    assert first.overrides == ("evaluation.control=both", "evaluation.demonstrations=2")
    assert (second.name, second.group) == ("both_noise_0.5", "seen")
    assert second.overrides[1] == "data.support_noise_levels=[0.5]"
    assert third.overrides == ("evaluation.control=none",)
    assert (last.name, last.overrides) == ("mine", ("evaluation.control=wrong",))


def test_a_claim_about_an_arm_that_does_not_exist_is_refused(tiny, tmp_path):
    path = tmp_path / "claims.yaml"
    test = "{where: here, study: tiny, ours: ours/text, theirs: theirs/both}"
    path.write_text(f"claims: [{{claim: it helps, tests: [{test}]}}]")
    with pytest.raises(ConfigError, match="'it helps': tiny has no arm ours/text/unseen"):
        read_claims(path, {"tiny": tiny[0]})


def test_every_command_of_the_page_names_a_study():
    text = (ROOT / "docs" / "results.md").read_text()
    commands = re.findall(r"python -m benchmarks\.studies(.*)", text)
    studies = read_studies(CONFIGS)
    on_page = {name for name, study in studies.items() if study.page}
    assert {words.split()[0] for words in commands if "--" not in words} == on_page


def test_the_targets_of_shifts_are_not_trained_on():
    studies = read_studies(CONFIGS)
    for variant in studies["levels"].variants:
        sources, held_out = " ".join(variant.settings).split("data.held_out=")
        assert "expert" not in sources
        assert "_expert.hdf5" in held_out
    assert len(studies["level_files"].variants) == 9
