"""The YAML file of somebody's own tasks: environments, data, texts and success."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from llmdpd_torchrl.envs import SuccessRule
from llmdpd_torchrl.prompts import RetrievalSpec, TextPrompt
from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.settings import Many, Number, Positive, Size, Text, checked_dataclass

#: One source, or a list of them.
Sources = Annotated[
    list[Text],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    AfterValidator(tuple),
]
References = Annotated[list[Number], Field(min_length=2, max_length=2), AfterValidator(tuple)]
#: What a task takes from the file where it does not say it itself.
_SHARED = ("env", "options", "success", "references", "max_steps")


@checked_dataclass()
class OwnTask:
    """One task of the file.

    Args:
        data: its episodes: sources of :func:`~llmdpd_torchrl.data.load_episodes`. Those of a
            held-out task are demonstrations, and are never trained on.
        text: what is to be done, in a sentence, or in the parts of a
            :class:`~llmdpd_torchrl.prompts.TextPrompt`.
        env, options, success, references, max_steps: as in :class:`TaskFile`, for this task.
    """

    data: Sources
    text: Any = None
    env: Text | None = None
    options: dict[str, Any] | None = None
    success: SuccessRule | None = None
    references: References | None = None
    max_steps: Size | None = None


@checked_dataclass()
class TaskFile:
    """The contents of the file.

    Args:
        tasks: those that are trained on, by name.
        held_out: those that the policy is only prompted with.
        family: ``gymnasium``.
        imports: ``import`` in the file: modules that register environments.
        env: id of the tasks' environment; without one, a policy is trained and not evaluated.
        options: further arguments of ``gymnasium.make``.
        success: when a task is solved, see :class:`~llmdpd_torchrl.envs.SuccessRule`.
        references: the returns that score 0 and 100, for tasks without success.
        max_steps: time limit of the environment, and of data that do not say where episodes end.
        keys: names of the arrays in the data, by those of D4RL's layout.
        action_range: lowest and highest value of the data's actions; default: the environment's.
        observation_fields: half-open index ranges of the observation by name.
        retrieval: what is looked up in a demonstration, see
            :class:`~llmdpd_torchrl.prompts.RetrievalSpec`; default: the state that is nearest.
        most_units: how many times larger the data's observations may be than the environment's, or
            the reverse, before it is taken for a mistake in the units.
    """

    tasks: Annotated[dict[str, OwnTask], Field(min_length=1)]
    held_out: dict[str, OwnTask] = field(default_factory=dict)
    family: Literal["gymnasium"] = "gymnasium"
    imports: Many[Text] = ()
    env: Text | None = None
    options: dict[str, Any] | None = None
    success: SuccessRule | None = None
    references: References | None = None
    max_steps: Size | None = None
    keys: dict[str, Text] = field(default_factory=dict)
    action_range: Any = None
    observation_fields: dict[str, Many[int]] | None = None
    retrieval: RetrievalSpec | None = None
    most_units: Positive = 100.0


def read_task_file(path: Path) -> TaskFile:
    """Read and check a file. Its tasks have what they share with others.

    Raises:
        ConfigError: with a line for every mistake, each naming the file and the key.
    """
    values = _read_yaml(path)
    values = {"imports" if key == "import" else key: v for key, v in values.items()}
    try:
        content = TaskFile(**values)
    except ConfigError as error:
        lines = re.sub(r"\bimports\b", "import", str(error)).splitlines()
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
    both = [name for name in content.tasks if name in content.held_out]
    if both:
        raise ConfigError(
            f"{path}: {both[0]!r} is among tasks and held_out: a task is trained on or held out"
        )
    tasks = content.tasks | content.held_out
    for task in tasks.values():
        for key in _SHARED:
            if getattr(task, key) is None:
                setattr(task, key, getattr(content, key))
    if any(task.env is not None for task in tasks.values()):
        _check_environments(path, tasks)
    return content


def _check_environments(path: Path, tasks: Mapping[str, OwnTask]) -> None:
    for name, task in tasks.items():
        if task.env is None:
            raise ConfigError(f"{path}: tasks.{name} has no env, and others do: give all")
        if task.success is None and task.references is None:
            raise ConfigError(
                f"{path}: {name} has neither success nor references: say when it is "
                "solved (success: {info: is_success}), or which returns score 0 and 100"
            )


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice, first on line {seen[key]}",
                    key_node.start_mark,
                )  # fmt: skip
            seen[str(key)] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the task file {path}: {error}") from error
    if "*" in text and "&" in text and any(isinstance(e, yaml.AliasEvent) for e in _events(text)):
        raise ConfigError(f"{path}: aliases (*name) are not read: write the values out")
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes no objects
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: is no mapping with the key tasks")
    return values


def _events(text: str) -> Any:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # said where it is read


def read_text(path: Path, name: str, text: Any) -> TextPrompt:
    """The prompt of a task by what its file says: a sentence, or its parts; ``None``: its name.

    Raises:
        ConfigError: if it is neither.
    """
    if text is None:
        return TextPrompt(name, task=name)
    parts = {"task": text} if isinstance(text, str) else text
    known = [key for key in TextPrompt.__dataclass_fields__ if key != "name"]
    if not isinstance(parts, dict) or "task" not in parts or set(parts) - set(known):
        raise ConfigError(
            f"{path}: text of {name} is {text!r}: give a sentence, or task and some of "
            f"{', '.join(known[1:])}"
        )
    for key, value in parts.items():
        lines = value if key == "paraphrases" and isinstance(value, list) else [value]
        if not all(isinstance(line, str) and line.strip() for line in lines):
            raise ConfigError(f"{path}: text of {name}: {key} is {value!r}: give words")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parts.items()}
    return TextPrompt(name, **given)
