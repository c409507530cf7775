"""Text prompts: one structured description of each task, read from YAML or made for a speed."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from llmdpd_torchrl.utils.errors import PromptError, first_line

_TEXT_FIELDS = ("task", "robot", "objective", "constraints", "success")
_LISTS = ("paraphrases", "wordings")
PROMPT_SUITES = ("metaworld", "gym_mujoco")
"""Task suites whose prompts come with the package."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class TextPrompt:
    """The description of one task in the five parts that the language model reads.

    Args:
        name: the task's name in its suite, such as ``"reach-v3"``. It is not part of the text.
        task: the action, in one short sentence.
        robot: the acting body.
        objective: the state of the world when the task is done.
        constraints: how to do it, and what must not happen.
        success: the measurable condition that ends the task. Parts that are empty are left out; of
            a prompt with the first alone, the text is that.
        paraphrases: further complete descriptions of the task in unlike words, to test with.
        wordings: how people may ask for the task in a line. Their mean embedding is what short
            texts are compared with, see :class:`~llmdpd_torchrl.modules.KnownTexts`.

    Examples:
        >>> prompt = TextPrompt("lift", "Lift the cup.", "A robot arm.", "Cup in the air.",
        ...                     "Do not spill.", "Cup 5 cm up.")
        >>> print(prompt.render())
        Task: Lift the cup.
        Robot: A robot arm.
        Objective: Cup in the air.
        Constraints: Do not spill.
        Success: Cup 5 cm up.
    """

    name: str
    task: str
    robot: str = ""
    objective: str = ""
    constraints: str = ""
    success: str = ""
    paraphrases: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the text for the language model: one labelled line per part, or the task alone."""
        given = [field for field in _TEXT_FIELDS if getattr(self, field)]
        if given == ["task"]:
            return self.task
        return "\n".join(f"{field.capitalize()}: {getattr(self, field)}" for field in given)

    def variant(self, index: int | None) -> str:
        """Return paraphrase ``index``, or the rendered prompt for ``None``.

        Raises:
            PromptError: if the prompt has no such paraphrase.
        """
        if index is None:
            return self.render()
        if not 0 <= index < len(self.paraphrases):
            raise PromptError(
                f"task {self.name!r} has {len(self.paraphrases)} paraphrases (0 to "
                f"{len(self.paraphrases) - 1}), so variant {index} does not exist"
            )
        return self.paraphrases[index]


def load_text_prompts(path: str | Path | None = None) -> dict[str, TextPrompt]:
    """Read text prompts from a YAML file, in the file's order, or those of a built-in suite.

    The file is a mapping with ``tasks`` (task name to fields) and optionally ``defaults`` (values
    for fields that a task leaves out). A task has the texts ``task``, ``robot``, ``objective``,
    ``constraints`` and ``success``, and may have the lists ``paraphrases`` and ``wordings``.

    Args:
        path: the YAML file, or the name of one of :data:`PROMPT_SUITES`: ``"metaworld"`` (default),
            the 50 Meta-World tasks, or ``"gym_mujoco"``, D4RL's locomotion datasets by level. A
            file of such a name is read as ``"./metaworld"``.

    Returns:
        task name to :class:`TextPrompt`.

    Raises:
        PromptError: if the file cannot be read or has another form. The message names the file and
            the line.

    Examples:
        >>> prompts = load_text_prompts()
        >>> len(prompts), prompts["reach-v3"].name
        (50, 'reach-v3')
        >>> load_text_prompts("gym_mujoco")["hopper-medium"].task
        'Hop forward on one leg at a moderate pace.'
    """
    path = PROMPT_SUITES[0] if path is None else path
    try:
        if path in PROMPT_SUITES:
            source = f"{path}.yaml"
            text = (resources.files(__package__) / "descriptions" / source).read_text(
                encoding="utf-8"
            )
        else:
            source = str(path)
            text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the prompt file {source}: {error}") from error
    prompts = _Reader(source).prompts(text)
    if path == "metaworld":
        return {name: replace(one, wordings=made_wordings(name)) for name, one in prompts.items()}
    return prompts


@functools.cache
def _wording_parts() -> dict[str, Any]:
    source = resources.files(__package__) / "descriptions" / "metaworld_wordings.yaml"
    return yaml.safe_load(source.read_text(encoding="utf-8"))


@functools.cache
def made_wordings(task: str, count: int = 24) -> tuple[str, ...]:
    """Short wordings of a Meta-World task: verb, object and relation, in one frame after another.

    The combinations are shuffled by the task's name, so that they are the same everywhere.

    Examples:
        >>> made_wordings("door-open-v3", 2)
        ('unclose the door until it is open', "open the safe's door by its handle.")
    """
    parts = _wording_parts()
    phrases = [" ".join(words) for words in itertools.product(*parts["tasks"][task])]
    random.Random(task).shuffle(phrases)
    frames = parts["frames"]
    return tuple(frames[i % len(frames)].format(phrases[i]) for i in range(count))


class _Reader:
    """Reads YAML *nodes*, because only they carry line numbers and duplicate keys."""

    def __init__(self, source: str) -> None:
        self.source = source

    def prompts(self, text: str) -> dict[str, TextPrompt]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:  # that of a forbidden character has no mark
            mark = getattr(error, "problem_mark", None)
            line = "" if mark is None else f", line {mark.line + 1}"
            reason = getattr(error, "problem", None) or first_line(error)
            raise PromptError(f"{self.source}{line}: not valid YAML: {reason}") from error
        if root is None:
            raise PromptError(f"{self.source}, line 1: the file is empty; it needs the key 'tasks'")
        top = dict(self.items(root, "the file", ("tasks", "defaults")))
        if "tasks" not in top:
            raise self.error(root, "the key 'tasks' is missing")
        defaults = {}
        if "defaults" in top:
            for field, node in self.items(top["defaults"], "defaults", _TEXT_FIELDS):
                defaults[field] = self.text(node, f"defaults, {field}")
        return {
            name: self.prompt(name, node, defaults)
            for name, node in self.items(top["tasks"], "tasks", None)
        }

    def prompt(self, name: str, node: yaml.Node, defaults: dict[str, str]) -> TextPrompt:
        values: dict[str, Any] = {**defaults}
        for field, value in self.items(node, f"task {name!r}", (*_TEXT_FIELDS, *_LISTS)):
            where = f"task {name!r}, {field}"
            if field in _LISTS:
                values[field] = self.texts(value, where)
            else:
                values[field] = self.text(value, where)
        missing = [field for field in _TEXT_FIELDS if field not in values]
        if missing:
            raise self.error(node, f"task {name!r} lacks {', '.join(missing)}")
        return TextPrompt(name=name, **values)

    def items(
        self, node: yaml.Node, where: str, allowed: tuple[str, ...] | None
    ) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise self.error(node, f"{where} must be a mapping with at least one key")
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            key = self.text(key_node, f"a key of {where}")
            if key in seen:
                raise self.error(
                    key_node, f"{where} has the key {key!r} twice (first on line {seen[key]})"
                )
            if allowed is not None and key not in allowed:
                raise self.error(
                    key_node, f"{where} has the unknown key {key!r}; known: {', '.join(allowed)}"
                )
            seen[key] = key_node.start_mark.line + 1
            yield key, value

    def texts(self, node: yaml.Node, where: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{where} must be a list of texts")
        return tuple(self.text(item, f"{where}[{i}]") for i, item in enumerate(node.value))

    def text(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            kind = node.tag.rsplit(":", 1)[-1]
            raise self.error(node, f"{where} must be a text, not {kind} (quote it if it is one)")
        text = " ".join(node.value.split())  # line breaks and repeated blanks are layout
        if not text:
            raise self.error(node, f"{where} is empty")
        return text

    def error(self, node: yaml.Node, message: str) -> PromptError:
        return PromptError(f"{self.source}, line {node.start_mark.line + 1}: {message}")


def velocity_task(speed: float) -> str:
    """The name of the task of running at ``speed`` (metres per second).

    Examples:
        >>> velocity_task(1.5)
        'halfcheetah-vel-1.5'
    """
    return f"halfcheetah-vel-{_digits(speed)}"


def task_velocity(name: str) -> float | None:
    """The speed in a name of :func:`velocity_task`, or ``None`` if it is another task's.

    Examples:
        >>> task_velocity("halfcheetah-vel-1.5")
        1.5
    """
    match = re.fullmatch(r"halfcheetah-vel-(\d+(?:\.\d+)?)", name)
    return float(match[1]) if match else None


def velocity_prompt(speed: float) -> TextPrompt:
    """The prompt of a half cheetah with the target velocity ``speed``.

    Tokens of a number encode little of its size, so the speed is also written in words, and its
    pace is named.

    Args:
        speed: target velocity, metres per second, to two decimals; 0 to 100.

    Raises:
        PromptError: if the speed is not a number in that range.

    Examples:
        >>> velocity_prompt(2.25).objective
        'The body moves to the right at 2.25 metres per second, two point two five, a brisk pace.'
    """
    digits = _digits(speed)
    words = _words(digits)
    pace = _pace(speed)
    return TextPrompt(
        name=velocity_task(speed),
        task=f"Run forward at a speed of {digits} metres per second.",
        robot="A flat two-legged cheetah with six driven joints.",
        objective=f"The body moves to the right at {digits} metres per second, {words}, {pace}.",
        constraints="Neither slower nor faster; keep the torques small.",
        success=f"The velocity stays within a tenth of {digits} metres per second.",
        paraphrases=(
            f"The planar feline keeps moving at exactly {words} m/s.",
            f"Hold the runner's pace at {digits} m per s, {pace}.",
            f"Every second the body gets {words} metres further.",
        ),
    )


def _digits(speed: float) -> str:
    if not 0.0 <= speed <= 100.0:
        raise PromptError(f"the speed is {speed}: give metres per second from 0 to 100")
    return f"{speed:.2f}".rstrip("0").rstrip(".")


def _words(digits: str) -> str:
    return " ".join("point" if digit == "." else _DIGITS[int(digit)] for digit in digits)


def _pace(speed: float) -> str:
    for limit, name in ((0.75, "a crawl"), (1.75, "a slow pace"), (3.0, "a brisk pace"),
                        (4.5, "a fast run")):  # fmt: skip
        if speed < limit:
            return name
    return "a sprint"
