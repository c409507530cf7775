"""Settings from a configuration, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import isfinite
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.prompts import make_text_encoder
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = [
    "check_lists",
    "check_numbers",
    "check_text_encoder",
    "check_texts",
    "check_whole_numbers",
    "part",
    "plain",
    "read",
]

Settings = TypeVar("Settings")


def plain(value: Any) -> Any:
    """A setting without the configuration around it, as JSON has it.

    Examples:
        >>> plain(OmegaConf.create({"a": [1, 2]})), plain("smollm2")
        ({'a': [1, 2]}, 'smollm2')
    """
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def part(cfg: DictConfig, names: Sequence[str]) -> DictConfig:
    """Some of the settings of a group."""
    return OmegaConf.masked_copy(cfg, list(names))


def read(kind: type[Settings], cfg: Any, where: str, **more: Any) -> Settings:
    """Make a settings dataclass of a config group, with one line for a wrong name or type.

    Args:
        kind: the dataclass.
        cfg: the group.
        where: its name, for messages.
        **more: what does not come from the group, or replaces it.

    Raises:
        ConfigError: on an unknown name or a value of another type, and as ``kind`` does.

    Examples:
        >>> from llmdpd_torchrl.evaluation import EvaluationSettings
        >>> read(EvaluationSettings, {"max_steps": 100}, "evaluation", seed=3).max_steps
        100
    """
    values = {**plain(cfg), **more}
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        wanted = kinds.get(str(item.type))
        value = values.get(item.name)
        if (
            wanted
            and item.name in values
            and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool))
        ):
            raise ConfigError(f"{where}.{item.name} is {value!r}: it must be of type {item.type}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_whole_numbers(
    cfg: DictConfig, keys: Sequence[str], least: int = 1, optional: bool = False
) -> None:
    """Check that settings are whole numbers of at least ``least``, or, if ``optional``, null.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if value is None and optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"{key} is {plain(value)!r}: it must be a whole number of at least {least}"
            )


def check_numbers(cfg: DictConfig, keys: Sequence[str], optional: bool = False) -> None:
    """Check that settings are finite numbers, or, if ``optional``, null.

    Raises:
        ConfigError: naming the first that is not.

    Examples:
        >>> check_numbers(OmegaConf.create({"loss": {"gamma": "most"}}), ["loss.gamma"])
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.ConfigError: loss.gamma is 'most': it must be a number
    """
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if value is None and optional:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            raise ConfigError(f"{key} is {plain(value)!r}: it must be a number")


def check_lists(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Check that settings are lists of names, or null.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key in keys:
        value = plain(OmegaConf.select(cfg, key))
        if value is not None and (
            not isinstance(value, list) or not all(isinstance(item, str) for item in value)
        ):
            raise ConfigError(f"{key} is {value!r}: give a list, such as '{key}=[first,second]'")


def check_texts(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Check that settings are texts, and not empty.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} is {plain(value)!r}: it must be a text")


def check_text_encoder(cfg: DictConfig) -> None:
    """Check that there is such a text encoder, for a policy that reads texts.

    Raises:
        PromptError: if not.
    """
    if cfg.prompt in ("both", "text"):
        make_text_encoder(plain(cfg.text_encoder))
