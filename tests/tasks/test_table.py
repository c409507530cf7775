import itertools

import pytest
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP

from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS, TaskTable
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
