"""Every task unseen once: the jobs of folds, and the page and figures of what is stored."""

import json
from pathlib import Path

import pytest

from benchmarks.studies import __main__ as results
from benchmarks.studies import unseen_all
from benchmarks.studies.jobs import Place, jobs
from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store, read_episodes, write_episodes
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.tasks import METAWORLD_TASKS, SPLITS
from llmdpd_torchrl.utils.errors import ConfigError
from tests.benchmarks.studies.tiny import HEAD, write

DEFINITIONS = Path(unseen_all.__file__).parent / "definitions"
STUDY = read_studies(DEFINITIONS)["unseen_all"]
GOALS = STUDY.episodes[0]


def keep(store, base, fold, seed, arm_name, rate):
    """Store an arm of a fold: of each task, this share of the goals is solved."""
    variant, arm = STUDY.find(f"{base}-{fold}", arm_name, "unseen")
    tasks, solved = SPLITS[f"fold_{fold}"].held_out, round(rate * GOALS)
    rows = [
        EpisodeResult(task, goal, goal < solved, goal < solved // 2, 1.0, 9)
        for task in tasks
        for goal in range(GOALS)
    ]
    write_episodes(store.path(STUDY, variant, seed, arm), rows)
    about = {"unseen_tasks": list(tasks)}
    store.training_path(STUDY, variant, seed).write_text(json.dumps(about))


REPORT = ("ml45", "rep1", "rep2", "rep3", "rep4", "rep5")


def test_the_report_is_all_that_is_run_unless_folds_are_named():
    found = jobs(STUDY, ["ours", "retrieve_and_play"], [])
    assert [job.variant.fold for job in found[:6]] == list(REPORT)
    assert len(found) == len({job.name for job in found}) == 2 * 6 * 3
    assert len(jobs(STUDY, ["ours"], [], ["dev2", "hard"])) == 11 * 3
    unseen = [t for job in jobs(STUDY, ["ours"], [0], ["development", "report"])
              for t in SPLITS[f"fold_{job.variant.fold}"].held_out]  # fmt: skip
    assert sorted(unseen) == sorted(METAWORLD_TASKS.names)
    (job,) = jobs(STUDY, ["retrieve_and_play"], [1], ["dev1"], ["clean", "noisy"])
    assert [arm.name for arm in job.missing(Store(Path("nowhere")))] == ["clean", "noisy"]


@pytest.mark.parametrize(
    ("folds", "arms", "message"),
    [
        (["dev9"], (), "folds has 'dev9': use some of development, report, hard, dev1"),
        (["dev1"], ["sung"], "arms has 'sung': use some of clean, noisy"),
    ],
)
def test_what_there_is_not_is_named(folds, arms, message):
    with pytest.raises(ConfigError, match=message):
        jobs(STUDY, ["ours"], (), folds, arms)


def test_a_study_without_folds_takes_none():
    other = read_studies(DEFINITIONS)["comparison"]
    with pytest.raises(ConfigError, match="study comparison has no folds"):
        jobs(other, (), (), ["dev1"])


def test_a_seed_chooses_goals_and_demonstration_of_every_policy(tmp_path):
    place = Place(Store(tmp_path), None, tmp_path)
    for base in ("ours", "retrieve_and_play"):
        (job,) = jobs(STUDY, [base], [2], ["dev3"])
        cfg = job.read(place)
        chosen = cfg.seed, cfg.evaluation.seed, cfg.evaluation.demonstration_number
        assert chosen == (2, 2, 2)
        assert cfg.tasks.split == "fold_dev3"
        assert job.command().endswith(f"unseen_all variants=[{base}] folds=[dev3] seeds=[2]")


def test_figures_are_of_complete_groups_and_differences_are_paired(tmp_path):
    store = Store(tmp_path)
    for fold in REPORT:
        for seed, rate in ((0, 1.0), (1, 0.8)):
            keep(store, "ours", fold, seed, "clean", rate)
            keep(store, "ours", fold, seed, "clean_to_the_end", rate)
            keep(store, "retrieve_and_play", fold, seed, "clean", rate - 0.2)
    for fold in REPORT[1:]:
        keep(store, "ours", fold, 0, "noisy", 0.4)
    found = unseen_all.figures(STUDY, store)
    assert found["ours_clean"] == pytest.approx(90)
    assert found["ours_clean_to_the_end"] == pytest.approx((48 + 40) / 2)
    assert found["rnp_clean"] == pytest.approx(70)
    assert found["ours_clean_seeds"] == 2
    assert found["ml45_ours_clean"] == pytest.approx(90)
    # The seeds differ by as much as the policies, which are compared seed by seed.
    names = [f"clean_minus_rnp{limit}" for limit in ("", "_low", "_high")]
    assert [found[name] for name in names] == pytest.approx([20, 20, 20])
    assert found["ours_clean_low"] < 90 < found["ours_clean_high"]
    assert "ours_noisy" not in found
    assert "clean_minus_rnp_plus" not in found


def test_the_page_says_what_is_missing(tmp_path):
    store = Store(tmp_path)
    keep(store, "ours", "dev1", 0, "clean", 0.6)
    unseen_all.publish({"unseen_all": STUDY}, store)
    assert {path.name for path in tmp_path.iterdir()} == {"unseen_all", "unseen_all.md"}
    text = (tmp_path / "unseen_all.md").read_text()
    assert "30 tasks of the report" not in text
    assert "| clean | 60 (60 to 60; 5 tasks) |\n" in text
    assert "| noisy |" not in text  # of nobody
    assert "| hammer-v3 | 60 |" in text
    assert "| sweep-v3 | - |" in text
    assert "clean minus retrieve and play+" not in text


def test_replay_that_hardly_fails_must_not_be_harmed(tmp_path):
    store = Store(tmp_path)
    for fold in REPORT:
        keep(store, "ours", fold, 0, "clean", 0.8)
        keep(store, "retrieve_and_play", fold, 0, "clean", 1.0 if fold == "rep1" else 0.2)
    found = unseen_all.figures(STUDY, store)
    assert found["clean_minus_rnp_on_easy_tasks"] == pytest.approx(-20)
    assert found["clean_minus_rnp"] == pytest.approx((5 * 60 - 20) / 6)


def test_trained_tasks_are_apart_from_the_unseen_ones(tmp_path):
    store = Store(tmp_path)
    for fold in REPORT:
        keep(store, "ours", fold, 0, "clean", 0.8)
    for fold, solved in (("ml45", 2), ("rep1", 1)):
        variant, arm = STUDY.find(f"ours-{fold}", "seen", "seen")
        rows = [EpisodeResult("push-v3", goal, goal < solved, False, 1.0, 9) for goal in range(2)]
        write_episodes(store.path(STUDY, variant, 0, arm), rows)
    found = unseen_all.figures(STUDY, store)
    assert (found["ours_clean"], found["ours_seen"]) == pytest.approx((80, 75))
    assert "state visible: ours 75" in unseen_all.build_page(STUDY, store)


SMOKE = HEAD.replace("[0, 1, 2]", "[0, 1]").replace("episodes: 4", "episodes: 2") + (
    "preset: smoke\npage: false\nfolder: unseen_all\nfolds: [development]\n"
    "overrides: [progress=false, data.workers=1, evaluation.max_steps=150, prompt=trajectory, "
    "'data.support_behaviour={}', data.support_episodes=3, data.episodes_per_task=2, "
    "'data.noise_levels=[0.0]', network.trajectory_dropout=0.2, trajectory_prompt.length=64, "
    "'tasks.train=[reach-v3,window-open-v3]', 'tasks.held_out=[door-close-v3,drawer-close-v3]']\n"
    "variants: {retrieve_and_play: {policy: retrieve_and_play, arms: [{name: clean}, "
    "{name: slow, behaviour: {gain: 0.8}}, {name: clean_to_the_end, stop_on_success: false}, "
    "{name: states_only, demonstration: states_only}, none]}}\n"
)


@pytest.mark.integration
def test_seeds_and_arms_are_other_episodes(tmp_path):
    write(tmp_path / "definitions", unseen_all=SMOKE)
    (tmp_path / "claims.yaml").write_text("claims: []")
    command = [
        "unseen_all", "workers=1", f"definitions={tmp_path / 'definitions'}", "folds=[dev1]",
        f"store={tmp_path / 'stored'}", f"output={tmp_path / 'output'}",
        f"data={tmp_path / 'data'}", f"page={tmp_path / 'page.md'}",
    ]  # fmt: skip
    assert results.main([*command, "seeds=[0]", "arms=[clean]"]) == 0
    assert results.main(command) == 0
    folder = tmp_path / "stored" / "unseen_all"

    def rows(seed, arm):
        return read_episodes(folder / f"retrieve_and_play-dev1-seed{seed}-{arm}-unseen.csv")

    clean = rows(0, "clean")
    assert all(episode.success for episode in clean)
    kinds = (0, "clean"), (1, "clean"), (0, "slow"), (0, "states_only")
    assert len({tuple(episode.length for episode in rows(*kind)) for kind in kinds}) == 4
    assert all(episode.length == 150 for episode in rows(0, "clean_to_the_end"))
    still = rows(1, "none")
    assert all(episode.action_change == 0 and not episode.success for episode in still)
    assert "# Every task unseen once" in (folder.parent / "unseen_all.md").read_text()


def test_what_is_not_solved_is_beside_what_bounds_it(tmp_path):
    store = Store(tmp_path)
    for fold in REPORT:
        keep(store, "ours", fold, 0, "clean", 0.6 if fold == "rep1" else 1.0)
        keep(store, "ours", fold, 0, "five", 1.0)
        keep(store, "retrieve_and_play_plus", fold, 0, "clean", 0.8)
    found = unseen_all.figures(STUDY, store)
    assert found["better_of_two_clean"] == pytest.approx((5 * 100 + 80) / 6)
    text = unseen_all.build_page(STUDY, store).partition("Not solved")[2]
    rows = [line for line in text.splitlines() if "-v3" in line]
    assert rows == [f"| {t} | 60 | 80 | 80 | - | 100 | - |" for t in SPLITS["fold_rep1"].held_out]
    assert "| all 30 | 93 | 80 | 97 | - | 100 | - |" in text
    table = unseen_all.readme_table(STUDY, store).markdown()
    assert "| five demonstrations | 100 (100 to 100) |  |  |  |" in table
