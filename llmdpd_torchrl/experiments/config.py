"""Schema of the settings: types and ranges, checked before any work is done.

Hydra's own structured configs would make 2 a ``true`` and 3 a ``"3"`` without a word, and know no
ranges; the YAML files hold the defaults, these models what each value may be.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llmdpd_torchrl.evaluation.controls import CONTROLS
from llmdpd_torchrl.modules.config import PROMPTS
from llmdpd_torchrl.prompts import make_text_encoder
from llmdpd_torchrl.utils.errors import ConfigError

Kind = TypeVar("Kind")
Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class Section(BaseModel):
    """A group of settings, without any others."""

    model_config = ConfigDict(**_STRICT, extra="forbid")


class TrajectoryPromptSchema(Section):
    """``trajectory_prompt``."""

    length: Annotated[int, Field(ge=2)]
    per_task: Annotated[int, Field(ge=2)]
    state_visible_prob: Probability
    augment: bool


class NetworkSchema(Section, extra="allow"):
    """Ranges in ``network``; names and types are those of the network's own configuration."""

    critics: Size
    diffusion_steps: Size
    trajectory_heads: Size = 1
    trajectory_width: Size = 1


class LossSchema(Section, extra="allow"):
    """Ranges in ``loss``; names and types are those of the algorithm."""

    gamma: Probability
    reward_scale: Positive
    actor_every: Size = 1
    alpha: Annotated[float, Field(ge=0)] = 0.0
    alpha_init: Positive = 1.0
    cloning_updates: Count = 0
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lmbda: Annotated[float, Field(ge=0)] = 0.0
    min_q_weight: Annotated[float, Field(ge=0)] = 0.0
    noise_clip: Annotated[float, Field(ge=0)] = 0.0
    num_random: Size = 1
    policy_noise: Annotated[float, Field(ge=0)] = 0.0
    return_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_sampling_steps: Size | None = None
    temperature: Positive = 1.0


class OptimSchema(Section):
    """``optim``."""

    learning_rate: Positive
    max_grad_norm: Positive | None
    batch_size: Size


class TrainerSchema(Section):
    """``trainer``."""

    total_updates: Size
    log_every: Size
    save_every: Size
    threads: Size | None


class EvaluationSchema(Section):
    """``evaluation``."""

    episodes_per_task: Size
    max_steps: Size | None
    seed: Seed
    stochastic: bool | None
    workers: Size | None
    control: Literal[CONTROLS]  # type: ignore[valid-type]
    backend: Text
    every: Count
    every_episodes: Size
    confusion: Count
    demonstrations: Size
    demonstration_fraction: Fraction


class VideoSchema(Section):
    """``video``."""

    tasks: list[str] | None
    fps: Positive
    every: Size
    width: Size
    height: Size
    during_training: bool


class LoggerSchema(Section, extra="allow"):
    """``logger``."""

    kind: Text


class Schema(Section):
    """The settings that both families have."""

    seed: Seed
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    prompt: Literal[PROMPTS]  # type: ignore[valid-type]
    text_encoder: Any
    progress: bool
    until: Literal["collect", "embed", "train", "evaluate", "video", "report"]
    resume: Literal["auto", "never"]
    force: list[Literal["train", "evaluate"]]
    debug: bool
    algorithm: Text
    trajectory_prompt: TrajectoryPromptSchema
    network: NetworkSchema
    loss: LossSchema
    optim: OptimSchema
    trainer: TrainerSchema
    evaluation: EvaluationSchema
    video: VideoSchema
    logger: LoggerSchema
    preset_name: str  # below: what is made of other settings, whose mistakes come first
    variant: str
    changes: str
    name: Text
    output_dir: Text


def check_schema(schema: type[Schema], cfg: DictConfig) -> None:
    """Check names, types and ranges of all settings.

    Raises:
        ConfigError: naming the first setting that is wrong.

    Examples:
        >>> class Small(Section):
        ...     batch_size: Size
        >>> check_schema(Small, OmegaConf.create({"batch_size": "many"}))
        Traceback (most recent call last):
        ...
        llmdpd_torchrl.utils.errors.ConfigError: batch_size is 'many': it must be a valid integer
    """
    try:
        schema.model_validate(plain(cfg))
    except ValidationError as error:
        raise _wrong(error, schema) from None


def plain(value: Any) -> Any:
    """A setting without the configuration around it, as JSON has it.

    Examples:
        >>> plain(OmegaConf.create({"a": [1, 2]})), plain("smollm2")
        ({'a': [1, 2]}, 'smollm2')
    """
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def section(cfg: DictConfig, kind: type) -> dict[str, Any]:
    """The settings of a group that a dataclass has fields for."""
    names = {item.name for item in dataclasses.fields(kind)}
    return {key: value for key, value in plain(cfg).items() if key in names}


def read(kind: type[Kind], cfg: Any, where: str, **more: Any) -> Kind:
    """Make a dataclass of a group of settings, with one line for a wrong name or type.

    Args:
        kind: the dataclass.
        cfg: the group.
        where: its name, for messages.
        **more: further fields, or replacements.

    Raises:
        ConfigError: on an unknown name or a value of another type, and as ``kind`` does.

    Examples:
        >>> from llmdpd_torchrl.evaluation import EvaluationSettings
        >>> read(EvaluationSettings, {"max_steps": 100}, "evaluation", seed=3).max_steps
        100
    """
    values, types = plain(cfg), get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            raise ConfigError(_unknown(f"{where}.{key}", types))
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            values[key] = read(types[key], value, f"{where}.{key}")
            continue
        try:
            strict = not isinstance(value, list)  # a list may become a tuple
            TypeAdapter(types[key], config=_STRICT).validate_python(value, strict=strict)
        except ValidationError as error:
            raise _wrong(error, None, where, key) from None
    return kind(**{**values, **more})


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


def _wrong(error: ValidationError, schema: Any, *where: str) -> ConfigError:
    first = error.errors()[0]
    place = [part for part in first["loc"] if str(part).isidentifier() or isinstance(part, int)]
    key = ".".join([*where, *map(str, place)])
    key = re.sub(r"\.(\d+)", r"[\1]", key)
    if first["type"] == "extra_forbidden":
        for part in place[:-1]:
            schema = schema.model_fields[part].annotation
        return ConfigError(_unknown(key, schema.model_fields))
    if first["type"] == "missing":
        return ConfigError(f"{key} is missing")
    text = first["msg"].replace("Input should be", "it must be")
    text = {
        "list_type": f"it must be a list, such as '{key}=[first,second]'",
        "string_too_short": "it must not be empty",
        "string_pattern_mismatch": "use auto, cpu, cuda or cuda:N",
    }.get(first["type"], text)
    return ConfigError(f"{key} is {first['input']!r}: {text}")


def _unknown(key: str, known: Any) -> str:
    where, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, known, n=1) or sorted(known)
    return f"{key}: there is no such setting; {where or 'the configuration'} has {', '.join(near)}"
