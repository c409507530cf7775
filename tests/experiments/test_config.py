"""Settings: one line for a wrong name, type or number."""

import pytest
from omegaconf import OmegaConf

from llmdpd_torchrl.envs import Dynamics
from llmdpd_torchrl.experiments.config import check_whole_numbers, plain, read
from llmdpd_torchrl.utils.errors import ConfigError


def test_a_group_becomes_its_dataclass():
    cfg = OmegaConf.create({"gravity": 0.5, "mass": "${.gravity}"})
    assert read(Dynamics, cfg, "dynamics", friction=2) == Dynamics(0.5, 0.5, 1.0, 2)
    assert plain(cfg) == {"gravity": 0.5, "mass": 0.5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gravity": "low"}, r"dynamics\.gravity is 'low': it must be of type float"),
        ({"gravity": True}, r"dynamics\.gravity is True"),
        ({"gravity": -1.0}, r"dynamics\.gravity is -1\.0"),
        ({"wind": 1.0}, "dynamics: .*'wind'"),
    ],
)
def test_mistakes_in_a_group(values, message):
    with pytest.raises(ConfigError, match=message):
        read(Dynamics, OmegaConf.create(values), "dynamics")


@pytest.mark.parametrize("value", [0, -1, 1.5, "two", None, True])
def test_whole_numbers(value):
    cfg = OmegaConf.create({"a": {"b": value, "c": 1}})
    check_whole_numbers(cfg, ["a.c"])
    with pytest.raises(ConfigError, match=r"a\.b is .*whole number of at least 1$"):
        check_whole_numbers(cfg, ["a.c", "a.b"])


def test_zero_where_it_may_be():
    cfg = OmegaConf.create({"a": 0, "b": -1})
    check_whole_numbers(cfg, ["a"], least=0)
    with pytest.raises(ConfigError, match=r"b is -1: .* of at least 0$"):
        check_whole_numbers(cfg, ["b"], least=0)
