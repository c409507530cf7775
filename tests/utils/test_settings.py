"""Settings: what a dataclass of them accepts, and the one line about what it does not."""

import copy
import dataclasses
import json
import pickle
from typing import Literal

import pytest

from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Flag,
    Fraction,
    Many,
    NonEmpty,
    Number,
    Size,
    Text,
    checked_dataclass,
)


@checked_dataclass("group.inner", frozen=True)
class Inner:
    width: Size = 4
    names: Many[str] = ()


@checked_dataclass("group")
class Group:
    name: Text
    kind: Literal["one", "two"] = "one"
    share: Fraction = 1.0
    hidden: NonEmpty[Size] = (8,)
    limit: Number | None = None
    is_new: Flag = False
    inner: Inner | None = dataclasses.field(default_factory=Inner)

    def __post_init__(self):
        if self.kind == "two" and self.inner is None:
            raise ConfigError("group.inner is None: two needs it")


def test_lists_and_mappings_become_what_they_stand_for():
    group = Group("a", hidden=[1, 2], limit=3, inner={"names": ["x"]})
    assert group.hidden == (1, 2)
    assert group.inner == Inner(names=("x",))
    assert type(group.limit) is float
    values = json.loads(json.dumps(dataclasses.asdict(group)))
    assert Group(**values) == group == copy.deepcopy(group) == pickle.loads(pickle.dumps(group))
    assert dataclasses.replace(group, inner=None).inner is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        group.inner.width = 5


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"share": 2}, "group.share is 2: it must be less than or equal to 1"),
        ({"share": "much"}, "group.share is 'much': it must be a valid number"),
        ({"share": True}, "group.share is True: it must be a valid number"),
        ({"limit": float("inf")}, "group.limit is inf: it must be a finite number"),
        ({"is_new": 1}, "group.is_new is 1: it must be a valid boolean"),
        ({"kind": "six"}, "group.kind is 'six': it must be 'one' or 'two'"),
        ({"name": ""}, "group.name is '': it must not be empty"),
        ({"name": "a\nb", "kind": "a\nb"}, "group.kind is 'a\\nb': it must be 'one' or 'two'"),
        ({"hidden": []}, "group.hidden is []: it must not be empty"),
        ({"hidden": 3}, "group.hidden is 3: it must be a list, such as 'group.hidden=["),
        ({"hidden": [1, 2.5]}, "group.hidden[1] is 2.5: it must be a valid integer"),
        ({"inner": 3}, "group.inner is 3: it must be a dictionary or an instance of Inner"),
        ({"inner": {"width": 0}}, "group.inner.width is 0: it must be greater than or equal to 1"),
        ({"inner": {"names": "x"}}, "group.inner.names is 'x': it must be a list, such as "),
        ({"nam": 1}, "group.nam: there is no such setting; group has name"),
        ({"inner": {"widht": 1}}, "group.inner.widht: there is no such setting; group.inner has w"),
        ({"inner": {"q": 1}}, "group.inner.q: there is no such setting; group.inner has names, w"),
        ({"kind": "two", "inner": None}, "group.inner is None: two needs it"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(values, line):
    with pytest.raises(ConfigError) as caught:
        Group(**{"name": "a"} | values)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"^group\.name is missing$"):
        Group(kind="two")


def test_without_a_group_the_key_stands_alone():
    @checked_dataclass(strict=True)
    class Settings:
        fast: bool
        count: int

    with pytest.raises(ConfigError, match=r"^fast is 1: it must be a valid boolean$"):
        Settings(fast=1, count=2)
    with pytest.raises(ConfigError, match=r"^slow: .*; the configuration has "):
        Settings(fast=True, count=2, slow=1)
    with pytest.raises(ConfigError, match=r"^count is '2'"):
        Settings(True, "2")


def test_an_unknown_key_is_named_also_inside_a_mapping_of_groups():
    @checked_dataclass()
    class Inner:
        size: Size

    @checked_dataclass()
    class Outer:
        by_name: dict[str, Inner]

    with pytest.raises(ConfigError, match=r"by_name\.a\.sise: there .* by_name\.a has size"):
        Outer(by_name={"a": {"size": 1, "sise": 2}})
