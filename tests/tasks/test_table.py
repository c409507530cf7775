"""Task names and ids, splits, and D4RL's reference returns."""

import itertools
import sys
import types

import pytest
from metaworld.env_dict import ENV_CLS_MAP, ML10_V3, ML45_V3
from metaworld.policies import ENV_POLICY_MAP

from llmdpd_torchrl.tasks import (
    FOLDS,
    METAWORLD_OBSERVATION_LAYOUT,
    METAWORLD_TASKS,
    SPLITS,
    TaskTable,
    make_split,
    normalized_score,
    reference_returns,
)
from llmdpd_torchrl.utils.errors import ConfigError


def test_the_table_is_metaworlds_own():
    assert set(METAWORLD_TASKS.names) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)


def test_ids_and_names_are_inverse():
    for task_id, name in enumerate(METAWORLD_TASKS.names):
        assert METAWORLD_TASKS.index(name) == task_id


def test_an_unknown_task_names_its_neighbours():
    with pytest.raises(ConfigError, match=r"unknown task 'reech-v3': did you mean .*reach-v3"):
        METAWORLD_TASKS.index("reech-v3")


def test_a_repeated_task_is_refused():
    with pytest.raises(ConfigError, match="'a' occurs twice"):
        TaskTable(("a", "b", "a"))


def test_the_layout_covers_the_observation_once():
    ranges = sorted(METAWORLD_OBSERVATION_LAYOUT["fields"].values())
    assert ranges[0][0] == 0
    assert ranges[-1][1] == METAWORLD_OBSERVATION_LAYOUT["size"]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("name", "random", "expert"),
    [
        ("Hopper-v4", -20.272305, 3234.3),
        ("halfcheetah-medium-replay-v2", -280.178953, 12135.0),
        ("walker2d_medium", 1.629008, 4592.3),
    ],
)
def test_the_scale_runs_from_random_to_expert(name, random, expert):
    assert normalized_score(name, random) == 0.0
    assert normalized_score(name, expert) == 100.0
    assert normalized_score(name, (random + expert) / 2) == pytest.approx(50.0)


def test_a_package_that_cannot_be_imported_is_a_warning(monkeypatch, tmp_path):
    """d4rl raises a bare Exception where MuJoCo 2.1 is missing."""
    (tmp_path / "d4rl.py").write_text("raise Exception('You appear to be missing MuJoCo\\nline 2')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    with (
        pytest.warns(UserWarning, match="not usable .Exception: You appear to be missing MuJoCo."),
        pytest.raises(ConfigError, match="no reference returns for 'pen-human-v0'"),
    ):
        reference_returns("pen-human-v0")


def test_the_package_knows_rarer_datasets(monkeypatch):
    infos = types.ModuleType("d4rl.infos")
    infos.REF_MIN_SCORE = {"pen-human-v0": 96.262799}
    infos.REF_MAX_SCORE = {"pen-human-v0": 3076.8331}
    package = types.ModuleType("d4rl")
    package.infos = infos
    monkeypatch.setitem(sys.modules, "d4rl", package)
    monkeypatch.setitem(sys.modules, "d4rl.infos", infos)
    assert reference_returns("pen-human-v0") == (96.262799, 3076.8331)


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "official"), [("ml10", ML10_V3), ("ml45", ML45_V3)])
def test_named_splits_are_metaworlds(name, official):
    assert set(SPLITS[name].train) == set(official["train"])
    assert set(SPLITS[name].held_out) == set(official["test"])


def test_the_validation_split_leaves_the_unseen_tasks_alone():
    split, ml45 = SPLITS["ml45_validation"], SPLITS["ml45"]
    assert set(split.tasks) == set(ml45.train)
    assert not set(split.tasks) & set(ml45.held_out)


def held_out(*groups):
    return [task for group in groups for fold in FOLDS[group] for task in SPLITS[fold].held_out]


def test_every_task_is_unseen_once_for_choices_or_for_the_result():
    assert (len(FOLDS["development"]), len(FOLDS["report"])) == (4, 6)
    assert sorted(held_out("development", "report")) == sorted(METAWORLD_TASKS.names)
    assert sorted(held_out("hard")) == sorted(METAWORLD_TASKS.names)


@pytest.mark.parametrize("fold", [fold for folds in FOLDS.values() for fold in folds])
def test_a_fold_trains_on_all_other_tasks(fold):
    split = make_split(fold)
    assert split.name == fold
    assert len(split.held_out) == 5
    assert sorted(split.tasks) == sorted(METAWORLD_TASKS.names)


def test_the_report_has_ml45s_own_unseen_tasks_and_no_choice_was_made_on_them():
    assert set(SPLITS["fold_ml45"].held_out) == set(SPLITS["ml45"].held_out)
    assert "fold_ml45" in FOLDS["report"]


def test_siblings_are_unseen_together_in_hard_folds():
    buttons = SPLITS["fold_buttons"]
    assert not [task for task in buttons.train if "button" in task]


def test_a_list_replaces_one_side_of_a_named_split():
    split = make_split("ml10", held_out=["lever-pull-v3"])
    assert split.train == SPLITS["ml10"].train
    assert split.held_out == ("lever-pull-v3",)


def test_a_smaller_draw_of_tasks_is_part_of_a_larger_one():
    ml45 = SPLITS["ml45"]
    draws = [make_split("ml45", count=count) for count in (5, 20, 45)]
    assert [len(split.train) for split in draws] == [5, 20, 45]
    assert set(draws[0].train) < set(draws[1].train) < set(ml45.train)
    assert draws[2] == ml45
    assert draws[0].held_out == ml45.held_out
    assert make_split("ml45", count=5, seed=1).train != draws[0].train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ml11"}, "unknown task split 'ml11': use one of ml10, ml45"),
        (
            {"name": "x", "train": ["reach-v3"], "held_out": ["reach-v3"]},
            "held-out task 'reach-v3'",
        ),
        ({"name": "ml10", "train": ["lever-pull-v3"]}, "held-out task 'lever-pull-v3'"),
        ({"name": "x", "train": ["reach"]}, "unknown task 'reach'"),
        ({"name": "x", "train": ["reach-v3", "reach-v3"]}, "occurs twice"),
        ({"name": "x", "train": []}, "no training task"),
        ({"name": "ml10", "count": 11}, "tasks.count is 11: split 'ml10' has 1 to 10 tasks"),
    ],
)
def test_wrong_lists_end_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_split(**arguments)
    assert "\n" not in str(caught.value)
