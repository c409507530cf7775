"""Schema of the settings: types and ranges, checked before any work is done.

Hydra's own structured configs would make 2 a ``true`` and 3 a ``"3"`` without a word, and know no
ranges; the YAML files hold the defaults, these classes what each value may be.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from llmdpd_torchrl.modules.config import Prompt
from llmdpd_torchrl.prompts import make_text_encoder
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import (
    Count,
    Flag,
    Fraction,
    Many,
    Positive,
    Probability,
    Seed,
    Size,
    Text,
    checked_dataclass,
)

Kind = TypeVar("Kind")
AtLeastTwo = Annotated[int, Field(strict=True, ge=2)]


@checked_dataclass()
class TrajectoryPromptSchema:
    """``trajectory_prompt``."""

    length: AtLeastTwo
    per_task: AtLeastTwo
    state_visible_prob: Probability
    augment: Flag


@checked_dataclass()
class OptimSchema:
    """``optim``."""

    learning_rate: Positive
    max_grad_norm: Positive | None
    batch_size: Size


@checked_dataclass()
class TrainerSchema:
    """``trainer``."""

    total_updates: Size
    log_every: Size
    save_every: Size
    threads: Size | None


@checked_dataclass()
class EvaluationSchema:
    """``evaluation``."""

    episodes_per_task: Size
    max_steps: Size | None
    seed: Seed
    stochastic: Flag | None
    workers: Size | None
    control: Text
    backend: Text
    every: Count
    every_episodes: Size
    confusion: Count
    demonstrations: Size
    demonstration_fraction: Fraction


@checked_dataclass()
class VideoSchema:
    """``video``."""

    tasks: Many[str] | None
    fps: Positive
    every: Size
    width: Size
    height: Size
    during_training: Flag


@checked_dataclass()
class Schema:
    """The settings that both families have.

    What ``network``, ``loss`` and ``logger`` may be, their own constructors say.
    """

    seed: Seed
    device: Text
    prompt: Prompt
    text_encoder: Any
    progress: Flag
    until: Literal["collect", "embed", "train", "evaluate", "video", "report"]
    resume: Literal["auto", "never"]
    force: Many[Literal["train", "evaluate"]]
    debug: Flag
    algorithm: Text
    trajectory_prompt: TrajectoryPromptSchema
    network: dict[str, Any]
    loss: dict[str, Any]
    optim: OptimSchema
    trainer: TrainerSchema
    evaluation: EvaluationSchema
    video: VideoSchema
    logger: dict[str, Any]
    preset_name: str  # below: what is made of other settings, whose mistakes come first
    variant: str
    changes: str
    name: Text
    output_dir: Text


def plain(value: Any) -> Any:
    """A setting without the configuration around it, as JSON has it.

    Examples:
        >>> plain(OmegaConf.create({"a": [1, 2]})), plain("smollm2")
        ({'a': [1, 2]}, 'smollm2')
    """
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def read(kind: type[Kind], cfg: DictConfig, **more: Any) -> Kind:
    """Make a dataclass of those settings of a group that it has fields for.

    Args:
        kind: the dataclass.
        cfg: the group.
        **more: further fields, or replacements.

    Examples:
        >>> from llmdpd_torchrl.evaluation import EvaluationSettings
        >>> read(EvaluationSettings, OmegaConf.create({"max_steps": 100}), seed=3).max_steps
        100
    """
    names = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in plain(cfg).items() if key in names} | more)


def check_text_encoder(cfg: DictConfig) -> None:
    """Check that there is such a text encoder, for a policy that reads texts.

    Raises:
        PromptError: if not.
    """
    if cfg.prompt in ("both", "text"):
        make_text_encoder(plain(cfg.text_encoder))


def choose_device(name: str) -> torch.device:
    """The device that ``device`` names: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: if this machine has no such device.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device is {name!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device is {name!r}: torch sees {count} CUDA devices here; use device=auto, which "
            "takes one if there is one, or device=cpu"
        )
    return device
