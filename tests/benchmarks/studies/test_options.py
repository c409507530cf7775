"""Settings of a study's command."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from benchmarks.studies.options import read_options
from llmdpd_torchrl.utils.errors import ConfigError


@dataclass
class Options:
    name: str = ""
    count: int = 1
    share: float = 0.5
    fast: bool = True
    seeds: Sequence[int] = (0,)


def test_each_kind_is_read():
    given = ["name=true", "count=3", "share=1", "fast=false", "seeds=[1, 2]"]
    assert read_options(Options, given) == Options("true", 3, 1, False, [1, 2])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("count=true", "give a number"),
        ("fast=1", "give true or false"),
        ("seeds=1", "give a list"),
        ("seeds=[a]", "give a list"),
        ("counts=1", "give key=value"),
        ("count", "give key=value"),
    ],
)
def test_mistakes_are_named(setting, says):
    with pytest.raises(ConfigError, match=says):
        read_options(Options, [setting])
