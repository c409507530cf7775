"""An audit of what a policy listens to: the same episodes under own, wrong and no prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tensordict import TensorDictBase

from llmdpd_torchrl.evaluation.comparison import paired_difference, percents
from llmdpd_torchrl.evaluation.controls import random_strings, shuffle_steps
from llmdpd_torchrl.evaluation.evaluator import Evaluator
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, Estimate
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.tasks.table import SCENES
from llmdpd_torchrl.utils.errors import ConfigError

#: Fewer points than this, up or down, are as good as none.
NEGLIGIBLE = 5.0
OWN = "own prompts"
Outcome = Literal["costs", "helps", "same", "unclear"]


@dataclass(frozen=True)
class TaskPrompts:
    """What a policy is given of a task.

    Attributes:
        text: the task in words; ``None``: nothing.
        paraphrase: the same in other words, if there are such.
        demonstrations: rollouts ``[T]``, see :meth:`LLMDPDPolicy.prompt`.
    """

    text: str | None = None
    paraphrase: str | None = None
    demonstrations: Sequence[TensorDictBase] = ()


@dataclass(frozen=True)
class Condition:
    """One way to prompt a policy.

    Attributes:
        name: of the condition.
        prompts: by task.
        tasks: those whose prompts are not their own.
        shuffles: whether the steps of each demonstration are in random order.
    """

    name: str
    prompts: Mapping[str, TaskPrompts]
    tasks: tuple[str, ...]
    shuffles: bool = False

    def tables(self, policy: LLMDPDPolicy, ids: Mapping[str, int]) -> PromptTables:
        """The prompts as an evaluator takes them, by task id.

        Raises:
            PromptError: if the text encoder is needed and not available.
        """
        texts = {ids[name]: one.text for name, one in self.prompts.items() if one.text is not None}
        rollouts = {ids[n]: one.demonstrations for n, one in self.prompts.items()}
        tables = policy.make_tables(texts, {i: some for i, some in rollouts.items() if some})
        return tables.map_trajectories(shuffle_steps) if self.shuffles else tables


@dataclass(frozen=True)
class _Question:
    """What a condition asks, and how its outcome reads; ``{}`` is the difference in points."""

    name: str
    costs: str
    same: str
    helps: str
    about: Literal["text", "demonstration", "both"] = "text"


_QUESTIONS = {
    question.name: question
    for question in (
        _Question(
            "another task's text",
            "It listens to its text: another task's costs {}.",
            "It does not listen to its text: another task's changes nothing ({}).",
            "Its text misleads it: with another task's it does better, by {}.",
        ),
        _Question(
            "the text of another task of its scene",
            "It tells the tasks of a scene apart by their texts: another one's costs {}.",
            "It does not tell the tasks of a scene apart by their texts ({}).",
            "Its text misleads it: with that of another task of the scene it does better, by {}.",
        ),
        _Question(
            "the text in other words",
            "Other words throw it off: the same task, put differently, costs {}.",
            "It understands other words: the task put differently changes nothing ({}).",
            "It does better with other words, by {}.",
        ),
        _Question(
            "random letters",
            "It needs words: random letters in their place cost {}.",
            "Random letters do as well as words ({}).",
            "Random letters do better than words, by {}.",
        ),
        _Question(
            "no text",
            "The text helps: without one it loses {}.",
            "It does as well without a text ({}).",
            "It does better without a text, by {}.",
        ),
        _Question(
            "another task's demonstration",
            "It follows its demonstration: another task's costs {}.",
            "It does not follow its demonstration: another task's changes nothing ({}).",
            "Its demonstration misleads it: with another task's it does better, by {}.",
            about="demonstration",
        ),
        _Question(
            "a demonstration with shuffled steps",
            "The order of the demonstration's steps matters: shuffled, it costs {}.",
            "The order of the demonstration's steps does not matter ({}).",
            "A demonstration with shuffled steps does better, by {}.",
            about="demonstration",
        ),
        _Question(
            "no demonstration",
            "The demonstration helps: without one it loses {}.",
            "It does as well without a demonstration ({}).",
            "It does better without a demonstration, by {}.",
            about="demonstration",
        ),
        _Question(
            "no prompt",
            "Its prompts help: without any it loses {}.",
            "It does as well without any prompt ({}).",
            "It does better without any prompt, by {}.",
            about="both",
        ),
    )
}


def conditions(policy: LLMDPDPolicy, prompts: Mapping[str, TaskPrompts]) -> list[Condition]:
    """All conditions that a policy can be audited under on some tasks; its own prompts first.

    A prompt is left out only of a policy that learned to act without, the prompts of another task
    need another task, of a scene another one of it, and other words a paraphrase.

    Args:
        policy: reads texts, demonstrations, or both.
        prompts: by task, in the order of the tasks.

    Raises:
        ConfigError: if the policy reads no prompt, or a task has none of a kind that it reads.
    """
    config = policy.config
    if not config.uses_text and not config.uses_trajectory:
        raise ConfigError("the policy reads no prompt: there is nothing to audit")
    for task, one in prompts.items():
        if config.uses_text and not one.text:
            raise ConfigError(f"there is no text for {task}, and the policy reads texts")
        if config.uses_trajectory and not one.demonstrations:
            raise ConfigError(f"there is no demonstration of {task}, and the policy reads them")
    found = [Condition(OWN, dict(prompts), tuple(prompts))]
    found += _of_text(policy, prompts) if config.uses_text else []
    found += _of_demonstration(policy, prompts) if config.uses_trajectory else []
    both = config.uses_text and config.uses_trajectory
    if both and config.text_dropout and config.trajectory_dropout:
        found.append(_changed("no prompt", prompts, dict.fromkeys(prompts, TaskPrompts())))
    return found


def _changed(
    name: str,
    prompts: Mapping[str, TaskPrompts],
    changes: Mapping[str, TaskPrompts],
    *,
    shuffles: bool = False,
) -> Condition:
    return Condition(name, {**prompts, **changes}, tuple(changes), shuffles)


def _of_text(policy: LLMDPDPolicy, prompts: Mapping[str, TaskPrompts]) -> Iterator[Condition]:
    def changed(name: str, texts: Mapping[str, str | None]) -> Condition:
        changes = {t: TaskPrompts(x, None, prompts[t].demonstrations) for t, x in texts.items()}
        return _changed(name, prompts, changes)

    if len(prompts) > 1:
        others = _others(list(prompts))
        yield changed("another task's text", {t: prompts[o].text for t, o in others.items()})
    scenes = [[task for task in scene if task in prompts] for scene in SCENES.values()]
    of_scene = {t: o for scene in scenes if len(scene) > 1 for t, o in _others(scene).items()}
    if of_scene:
        yield changed(
            "the text of another task of its scene",
            {t: prompts[o].text for t, o in of_scene.items()},
        )
    worded = {task: one.paraphrase for task, one in prompts.items() if one.paraphrase}
    if worded:
        yield changed("the text in other words", worded)
    letters = random_strings([one.text or "" for one in prompts.values()])
    yield changed("random letters", dict(zip(prompts, letters, strict=True)))
    if policy.config.text_dropout:
        yield changed("no text", dict.fromkeys(prompts))


def _of_demonstration(
    policy: LLMDPDPolicy, prompts: Mapping[str, TaskPrompts]
) -> Iterator[Condition]:
    def changed(name: str, others: Mapping[str, str | None]) -> Condition:
        changes = {
            t: TaskPrompts(prompts[t].text, None, prompts[o].demonstrations if o else ())
            for t, o in others.items()
        }
        return _changed(name, prompts, changes)

    if len(prompts) > 1:
        yield changed("another task's demonstration", {**_others(list(prompts))})
    if max(len(one.demonstrations) for one in prompts.values()) == 1:
        name = "a demonstration with shuffled steps"
        yield _changed(name, prompts, prompts, shuffles=True)
    if policy.config.trajectory_dropout:
        yield changed("no demonstration", dict.fromkeys(prompts))


def _others(tasks: Sequence[str]) -> dict[str, str]:
    """Another task for each, half the list away: neighbours are often relatives."""
    half = len(tasks) // 2
    return dict(zip(tasks, [*tasks[half:], *tasks[:half]], strict=True))


@dataclass(frozen=True)
class Finding:
    """What a condition does to a policy.

    Attributes:
        condition: its name.
        tasks: number of tasks whose prompts it changes.
        value: success in percent, or score, on them.
        difference: own prompts minus this, on the same tasks and goals, with its interval.
        outcome: what that says.
        sentence: the same in words.
    """

    condition: str
    tasks: int
    value: float
    difference: Estimate
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Audit:
    """The findings about a policy.

    Attributes:
        own: success in percent, or score, with its own prompts.
        measure: ``"success"`` or ``"score"``.
        findings: one a condition.
        left_out: conditions that could not be tried, and why.
    """

    own: float
    measure: str
    findings: Sequence[Finding]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def verdict(self, about: Literal["text", "demonstration", "both"]) -> list[str]:
        """The sentences about text, demonstration, or both together."""
        return [f.sentence for f in self.findings if _QUESTIONS[f.condition].about == about]

    def markdown(self, name: str) -> str:
        """A page about the policy ``name``."""
        unit = "success, %" if self.measure == "success" else "score"
        head = ("prompted with", "tasks", unit, "own minus it (95 % interval)")
        rows = [(OWN, "", f"{self.own:.0f}", "")]
        rows += [
            (f.condition, str(f.tasks), f"{f.value:.0f}", f.difference.text())
            for f in self.findings
        ]
        titles = {"text": "Its text", "demonstration": "Its demonstration", "both": "Both together"}
        verdicts = [(title, self.verdict(about)) for about, title in titles.items()]  # type: ignore[arg-type]
        parts = [f"# Does {name} listen to its prompts?"]
        parts += [f"**{title}.** {' '.join(lines)}" for title, lines in verdicts if lines]
        parts.append(Table(head, rows).markdown())
        parts.append(
            "Episodes are the same in all rows, and differences are paired by task and goal; the "
            "interval is for new goals. A number of tasks below that of the evaluation: only they "
            f"have such a prompt. Less than {NEGLIGIBLE:.0f} points are called nothing."
        )
        parts += [f"Not tried: {name}: {why}." for name, why in self.left_out.items()]
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        found = asdict(self)
        for finding in found["findings"]:
            finding["difference"] = list(finding["difference"])
        return found


def judge(
    tried: Sequence[Condition],
    episodes: Mapping[str, Sequence[EpisodeResult]],
    left_out: Mapping[str, str] | None = None,
) -> Audit:
    """Compare each condition with the policy's own prompts.

    Args:
        tried: the conditions.
        episodes: of each that was tried, by its name, the same tasks and goals in all; those of its
            own prompts must be there.
        left_out: see :class:`Audit`.
    """
    own = episodes[OWN]
    scored = own[0].score is not None
    values = percents([own], scored=scored)
    findings = []
    for condition in tried:
        if condition.name == OWN or condition.name not in episodes:
            continue
        of = [e for e in episodes[condition.name] if e.task in condition.tasks]
        theirs = percents([of], scored=scored)
        difference = paired_difference({task: values[task] for task in theirs}, theirs)
        outcome = _outcome(difference)
        findings.append(
            Finding(
                condition.name, len(theirs), _mean(theirs), difference, outcome,
                _sentence(_QUESTIONS[condition.name], outcome, difference),
            )
        )  # fmt: skip
    measure = "score" if scored else "success"
    return Audit(_mean(values), measure, findings, dict(left_out or {}))


def _mean(values: Mapping[str, Any]) -> float:
    return float(sum(rows.mean() for rows in values.values()) / len(values))


def _outcome(difference: Estimate) -> Outcome:
    if difference.low > 0:
        return "costs"
    if difference.high < 0:
        return "helps"
    return "same" if max(-difference.low, difference.high) <= NEGLIGIBLE else "unclear"


def _sentence(question: _Question, outcome: Outcome, difference: Estimate) -> str:
    limits = sorted((abs(difference.low), abs(difference.high)))
    if outcome == "unclear":
        return (
            f"What {question.name} changes can't be told from these episodes (own minus it "
            f"{difference.text()} points): run more."
        )
    if outcome == "same":
        return question.same.format(f"{difference.text()} points")
    points = f"{abs(difference.value):.0f} points ({limits[0]:.0f} to {limits[1]:.0f})"
    return getattr(question, outcome).format(points)


def run_conditions(
    evaluator: Evaluator,
    policy: LLMDPDPolicy,
    tables: Mapping[str, PromptTables],
    *,
    done: Mapping[str, Sequence[EpisodeResult]] | None = None,
    keep: Callable[[Mapping[str, Sequence[EpisodeResult]]], None] = lambda found: None,
) -> dict[str, Sequence[EpisodeResult]]:
    """Evaluate a policy under each condition, on the same episodes.

    Args:
        evaluator: of the tasks.
        policy: to be audited.
        tables: of prompts, by the name of the condition.
        done: conditions that were evaluated before.
        keep: called with all that is there after each.
    """
    found = {name: some for name, some in (done or {}).items() if name in tables}
    for name, prompts in tables.items():
        if name not in found:
            found[name] = evaluator(policy, prompts)
            keep(found)
    return found
