"""Conclusions from stored episodes, and the page about them."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmarks.studies import __main__ as results
from benchmarks.studies import judge, page
from benchmarks.studies.registry import read_claims, read_studies
from benchmarks.studies.store import Store, write_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.utils.errors import ConfigError
from tests.benchmarks.studies.tiny import HEAD, write

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "benchmarks" / "studies" / "definitions"


def test_sections_of_the_page_follow_from_the_stored_files():
    studies, store = read_studies(CONFIGS), Store(ROOT / "benchmarks" / "results")
    text = (ROOT / "docs" / "results.md").read_text()
    for name in ("without_trajectory", "settings", "speeds"):
        assert "\n".join(page.section(studies[name], store, "../benchmarks/results")) in text
    table = page.summary(studies["comparison"], store).markdown()
    assert table in (ROOT / "README.md").read_text()


@pytest.mark.integration
def test_the_page_follows_from_the_stored_files_byte_for_byte():
    studies = read_studies(CONFIGS)
    claims = read_claims(ROOT / "benchmarks" / "studies" / "claims.yaml", studies)
    store = Store(ROOT / "benchmarks" / "results")
    text = page.build_page(studies, claims, store, "../benchmarks/results")
    assert text == (ROOT / "docs" / "results.md").read_text()


@pytest.mark.integration
def test_the_figures_follow_from_the_stored_files(capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr().out


def test_only_complete_arms_count_and_further_goals_do_not(tiny):
    study, store, keep = tiny
    ours = study.variants[0]
    both = ours.arms[0]
    keep("ours", 0, "both", [1, 1, 1, 1])  # of one task of two
    assert store.episodes(study, ours, 0, both) is None
    keep("ours", 0, "both", [1, 1, 1], [1, 1, 1])  # three goals of four
    assert store.missing(study, ours, 0) == list(ours.arms)
    keep("ours", 0, "both", [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1])
    assert len(store.episodes(study, ours, 0, both)) == 8
    assert judge.mean(study, judge.side(store, study, ours, both)).value == 50
    assert store.missing(study, ours, 0) == [ours.arms[1]]


def test_the_page_says_where_ours_loses_and_what_is_missing(tiny):
    study, store, keep = tiny
    for seed in (0, 1):
        keep("ours", seed, "both", [0, 0, 0, 1], [0, 0, 1, 1])
        keep("theirs", seed, "both", [1, 1, 1, 1], [1, 1, 1, 1])
    keep("ours", 0, "none", [0, 0, 0, 1], [0, 0, 1, 1])
    text = page.build_page({"tiny": study}, [], store, "stored")
    finding = next(line for line in text.splitlines() if line.startswith("**Finding"))
    assert "Ours loses to Theirs by 62 (" in finding
    assert "is not distinguished from itself prompted with none (+0 (+0 - +0))" in finding
    assert "- Ours: seed 2; seed 1: none on unseen tasks" in text
    assert "| Theirs | both | 100 (" in text
    assert "| 2 (100 - 100) | 16 | 10 | 60 | 7 | +62 (" in text
    assert "[1](stored/runs/theirs-seed1-both-unseen.csv)" in text


def test_the_same_policy_is_judged_by_the_seeds_that_both_arms_have(tiny, tmp_path):
    study, store, keep = tiny
    test = "{where: here, study: tiny, ours: ours/both, theirs: ours/none}"
    (tmp_path / "claims.yaml").write_text(f"claims: [{{claim: it helps, tests: [{test}]}}]")
    (claim,) = read_claims(tmp_path / "claims.yaml", {"tiny": study})
    for seed in range(3):
        keep("ours", seed, "both", [1, 1, 1, 1], [1, 1, 1, 1])
    for seed in range(2):
        keep("ours", seed, "none", [0, 0, 0, 0], [0, 0, 0, 0])
        assert judge.judge(store, study, claim.tests[0])[1] == judge.UNDECIDED
    keep("ours", 2, "none", [0, 0, 0, 0], [0, 0, 0, 0])
    assert judge.judge(store, study, claim.tests[0])[1] == judge.CONFIRMED
    absent = dataclasses.replace(claim.tests[0], tasks=("c",))
    with pytest.raises(ConfigError, match="tiny has no episodes of 'c'"):
        judge.judge(store, study, absent)


def test_a_variant_can_have_a_reference_of_its_own_and_groups_other_names(tmp_path):
    text = HEAD + (
        "groups: {unseen: held-out}\nreference: {variant: a, also: [b]}\narms: [both]\n"
        "variants: {a: {}, b: {}, c: {reference: b}}"
    )
    study = read_studies(write(tmp_path, tiny=text))["tiny"]
    rows = [EpisodeResult("t", goal, goal < 2, goal < 2, 1.0, 9) for goal in range(4)]
    store = Store(tmp_path / "results")
    for variant in study.variants:
        write_episodes(store.path(study, variant, 0, variant.arms[0]), rows)
    text = page.build_page({"tiny": study}, [], store, "stored")
    equal = "(+0 (+0 - +0))"
    assert (
        f"On held-out tasks, a [one seed] is not distinguished from b [one seed] {equal}." in text
    )
    assert (
        f"b [one seed] is not distinguished from c [one seed] {equal}, a [one seed] {equal}."
        in text
    )
    assert "| variant | prompted with | held-out: success, % |" in text
    for wrong in ("{reference: d}", "{}, d: {reference: e}"):
        write(tmp_path, tiny=HEAD + f"arms: [both]\nvariants: {{a: {wrong}}}")
        with pytest.raises(ConfigError, match="none of the variants"):
            read_studies(tmp_path)


def test_the_settings_of_the_rivals_are_the_best_that_were_tried():
    """By the mean of both groups of tasks, as the study says."""
    study = read_studies(CONFIGS)["settings"]
    store = Store(ROOT / "benchmarks" / "results")
    for name in ("td3_bc", "cql"):
        tried = [v for v in study.variants if v.name.startswith(f"settings_{name}")]
        means = {
            variant: sum(
                judge.mean(study, judge.side(store, study, variant, arm)).value
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
        ([1, 1, 1, 1], [0, 0, 0, 1], 0, judge.CONFIRMED),
        ([0, 0, 0, 1], [1, 1, 1, 1], 0, judge.REFUTED),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0, judge.UNDECIDED),
        ([1, 1, 0, 0], [1, 1, 0, 0], 0, judge.EQUAL),  # which is not better
        ([1, 1, 0, 0], [1, 1, 0, 0], 5, judge.CONFIRMED),  # but it is enough
        ([0, 0, 0, 1], [1, 1, 1, 1], 5, judge.REFUTED),
    ],
)
def test_the_interval_alone_decides_about_a_claim(tiny, tmp_path, ours, theirs, margin, verdict):
    study, store, keep = tiny
    test = "{where: here, study: tiny, ours: ours/both, theirs: theirs/both, margin: MARGIN}"
    path = tmp_path / "claims.yaml"
    path.write_text(
        f"claims: [{{claim: it helps, tests: [{test.replace('MARGIN', str(margin))}]}}]"
    )
    (claim,) = read_claims(path, {"tiny": study})
    assert judge.judge(store, study, claim.tests[0]) == (None, judge.NOT_RUN)
    keep("ours", 0, "both", ours, ours)
    keep("theirs", 0, "both", theirs, theirs)
    # Of one or two seeds each, nothing is said about another training.
    for seed in (1, 2):
        assert judge.judge(store, study, claim.tests[0])[1] == judge.UNDECIDED
        keep("ours", seed, "both", ours, ours)
        keep("theirs", seed, "both", theirs, theirs)
    assert judge.judge(store, study, claim.tests[0])[1] == verdict
    row = page.claim_table({"tiny": study}, [claim], store).rows[0]
    assert row[:3] == ("it helps", "[here](#tiny)", "Ours: both against Theirs: both")
    assert row[4] == verdict


def test_what_this_machine_may_lack_is_named_where_nothing_is_run(tiny, tmp_path):
    _, store, keep = tiny
    keep("ours", 0, "both", [1, 1, 1, 1], [1, 1, 1, 1])
    variants = "variants: {ours: {}, theirs: {needs: a larger machine}}"
    write(
        tmp_path / "configs", tiny=f"{HEAD}arms: [both]\nreference: {{variant: ours}}\n{variants}"
    )
    study = read_studies(tmp_path / "configs")["tiny"]
    path = tmp_path / "claims.yaml"
    test = "{where: here, study: tiny, ours: theirs/both, theirs: ours/both}"
    path.write_text(f"claims: [{{claim: larger is better, tests: [{test}]}}]")
    (claim,) = read_claims(path, {"tiny": study})
    row = page.claim_table({"tiny": study}, [claim], store).rows[0]
    assert row[3:] == ("not run yet", "not run yet: needs a larger machine")
