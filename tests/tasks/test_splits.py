import pytest
from metaworld.env_dict import ML10_V3, ML45_V3

from llmdpd_torchrl.tasks import SPLITS, make_split
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.mark.parametrize(("name", "official"), [("ml10", ML10_V3), ("ml45", ML45_V3)])
def test_named_splits_are_metaworlds(name, official):
    assert set(SPLITS[name].train) == set(official["train"])
    assert set(SPLITS[name].held_out) == set(official["test"])


def test_the_validation_split_leaves_the_unseen_tasks_alone():
    split, ml45 = SPLITS["ml45_validation"], SPLITS["ml45"]
    assert set(split.tasks) == set(ml45.train)
    assert not set(split.tasks) & set(ml45.held_out)


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
