"""Text prompts: what a task is, in words, one structured description per task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from llmdpd_torchrl.utils.errors import PromptError, first_line

__all__ = ["PROMPT_SUITES", "TextPrompt", "load_text_prompts"]

_TEXT_FIELDS = ("task", "robot", "objective", "constraints", "success")
_FIELDS = (*_TEXT_FIELDS, "paraphrases")
#: The suites of tasks whose prompts come with the package.
PROMPT_SUITES = ("metaworld", "gym_mujoco")


@dataclass(frozen=True)
class TextPrompt:
    """The description of one task, in the five parts that a language model reads.

    Args:
        name: the task's name in its suite, such as ``"reach-v3"``. It is not part of the text.
        task: what is done, in one short sentence.
        robot: what does it.
        objective: what the world looks like when it is done.
        constraints: how it is to be done, and what is not to happen.
        success: the measurable condition that ends the task.
        paraphrases: other whole descriptions of the same task, in other words. They test, and can
            train, an encoder that understands rather than matches words.

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
    robot: str
    objective: str
    constraints: str
    success: str
    paraphrases: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the prompt as the language model reads it, one labelled line per part."""
        return "\n".join(f"{field.capitalize()}: {getattr(self, field)}" for field in _TEXT_FIELDS)

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

    The file is a mapping with ``tasks`` (task name to fields) and, if wanted, ``defaults`` (values
    for fields that a task leaves out). A task has the texts ``task``, ``robot``, ``objective``,
    ``constraints`` and ``success``, and may have a list ``paraphrases``.

    Args:
        path: the YAML file, or the name of one of :data:`PROMPT_SUITES`: ``"metaworld"`` (default),
            the 50 Meta-World tasks, or ``"gym_mujoco"``, D4RL's locomotion data sets by level. A
            file of such a name is read as ``"./metaworld"``.

    Returns:
        task name to :class:`TextPrompt`.

    Raises:
        PromptError: if the file can not be read or is not of this form. The message names the file
            and the line.

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
        raise PromptError(f"can not read the prompt file {source}: {error}") from error
    return _Reader(source).prompts(text)


class _Reader:
    """Reads the YAML *nodes*, because only they know their line and keep duplicate keys."""

    def __init__(self, source: str) -> None:
        self.source = source

    def prompts(self, text: str) -> dict[str, TextPrompt]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            raise PromptError(
                f"{self.source}, line {line}: not valid YAML: {error.problem}"
            ) from error
        except yaml.YAMLError as error:  # characters that YAML does not allow carry no mark
            reason = first_line(error)
            raise PromptError(f"{self.source}: not valid YAML: {reason}") from error
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
        values = dict(defaults)
        paraphrases: tuple[str, ...] = ()
        for field, value in self.items(node, f"task {name!r}", _FIELDS):
            where = f"task {name!r}, {field}"
            if field == "paraphrases":
                paraphrases = self.texts(value, where)
            else:
                values[field] = self.text(value, where)
        missing = [field for field in _TEXT_FIELDS if field not in values]
        if missing:
            raise self.error(node, f"task {name!r} lacks {', '.join(missing)}")
        return TextPrompt(name=name, paraphrases=paraphrases, **values)

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
        text = " ".join(node.value.split())  # folded lines and stray blanks are layout, not text
        if not text:
            raise self.error(node, f"{where} is empty")
        return text

    def error(self, node: yaml.Node, message: str) -> PromptError:
        return PromptError(f"{self.source}, line {node.start_mark.line + 1}: {message}")
