"""Controls: the same policy on the same episodes, with fewer, wrong or damaged prompts."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from llmdpd_torchrl.evaluation.evaluator import Evaluator
from llmdpd_torchrl.evaluation.statistics import summarise
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts import (
    TextPrompt,
    centred_similarity,
    embed_texts,
    load_text_prompts,
    text_embedding_table,
)
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, TaskTable, scene_of
from llmdpd_torchrl.utils.errors import ConfigError

#: What a policy is prompted with: all it reads; one of the prompts, or neither; those of another
#: task, or of another one of its scene; a trajectory with shuffled steps; only a paraphrase of
#: the text, or only random letters in its place; demonstrations of the trained tasks whose texts
#: are nearest to the task's own, of which there is none.
Control = Literal[
    "both", "text", "trajectory", "none", "wrong", "swapped", "shuffled", "paraphrase",
    "random_text", "nearest_text",
]  # fmt: skip
CONTROLS: tuple[str, ...] = get_args(Control)
_WITHOUT_TRAJECTORY = ("text", "none", "paraphrase", "random_text")


def apply_control(
    control: str,
    tasks: Sequence[str],
    tables: PromptTables,
    *,
    encoder: str | Mapping[str, Any] = "smollm2",
    table: TaskTable = METAWORLD_TASKS,
    prompts: Mapping[str, TextPrompt] | None = None,
    trained: Sequence[str] = (),
) -> PromptTables:
    """The tables of prompts that a policy is evaluated with under a control.

    Args:
        control: one of :data:`CONTROLS`.
        tasks: that are evaluated.
        tables: the tasks' own prompts.
        encoder: of the texts, for ``"paraphrase"`` and ``"random_text"``, which need others. The
            language model runs for texts whose embeddings are not stored.
        table: of the tasks' ids.
        prompts: the texts, by name of the task; default: Meta-World's.
        trained: the tasks whose demonstrations ``"nearest_text"`` chooses from.

    Raises:
        ConfigError: if the control is unknown, ``"wrong"`` is applied to a single task, or
            ``"swapped"`` to one that shares its scene with no other of the tasks.
        PromptError: if the language model is needed and not available.
    """
    if control not in CONTROLS:
        raise ConfigError(f"unknown control {control!r}: use one of {', '.join(CONTROLS)}")
    if control == "wrong":
        return swap_prompts(tasks, tables, table=table)
    if control == "swapped":
        for some in _scenes_of(tasks):
            tables = swap_prompts(some, tables, 1, table=table)
        return tables
    text, bank = tables.text, tables.trajectories
    if control == "nearest_text":
        return nearest_prompts(tasks, trained, tables, table=table)
    if control == "shuffled":
        return PromptTables(text, None if bank is None else shuffle_steps(bank))
    if control == "paraphrase":
        return PromptTables(text_embedding_table(table.names, encoder, prompts, variant=0))
    if control == "random_text":
        prompts = load_text_prompts() if prompts is None else prompts
        texts = [prompts[name].render() for name in table.names]
        return PromptTables(embed_texts(random_strings(texts), encoder))
    shows_text, shows_trajectory = control in ("both", "text"), control in ("both", "trajectory")
    return PromptTables(text if shows_text else None, bank if shows_trajectory else None)


def check_control(
    control: str, demonstrations: int, config: NetworkConfig, tasks: Sequence[str]
) -> None:
    """Refuse, before anything is trained, prompts that a policy of this structure cannot read.

    Raises:
        ConfigError: if it needs a prompt that the control hides, cannot read several
            demonstrations, or the control needs more tasks.
    """
    for prompt, uses, dropout, shown_by in (
        ("text", config.uses_text, config.text_dropout, ("trajectory", "none")),
        ("trajectory", config.uses_trajectory, config.trajectory_dropout, _WITHOUT_TRAJECTORY),
    ):
        if uses and not dropout and control in shown_by:
            raise ConfigError(
                f"evaluation.control={control} hides the {prompt} prompt, and the policy learns to "
                f"do without only with network.{prompt}_dropout above 0"
            )
    if demonstrations > 1 and not config.retrieves:
        raise ConfigError(
            f"evaluation.demonstrations is {demonstrations}, but this policy retrieves from none: "
            "use conditioning=retrieved with a trajectory prompt, or one demonstration"
        )
    if control == "wrong":
        _check_several(tasks)
    if control == "swapped":
        _scenes_of(tasks)


def _check_several(tasks: Sequence[str]) -> None:
    if len(tasks) < 2:
        raise ConfigError("wrong prompts need at least two tasks: evaluate more")


def _scenes_of(tasks: Sequence[str]) -> list[list[str]]:
    """The tasks by their scenes, of which each must have two of them."""
    scenes = dict.fromkeys(map(scene_of, tasks))
    found = [[task for task in scene if task in tasks] for scene in scenes]
    if alone := [scene[0] for scene in found if len(scene) < 2]:
        others = ", ".join(task for task in scene_of(alone[0]) if task != alone[0])
        raise ConfigError(f"swapped prompts of {alone[0]} are its scene's: evaluate {others} too")
    return found


def swap_prompts(
    tasks: Sequence[str],
    tables: PromptTables,
    offset: int | None = None,
    *,
    table: TaskTable = METAWORLD_TASKS,
) -> PromptTables:
    """Give every task the prompts, text and trajectory, of a task further on in the list.

    Args:
        tasks: the list, which begins again at its end.
        tables: the tasks' own prompts.
        offset: how far on. Default: half the list, because neighbours in it are often relatives
            (door-lock, door-unlock).
        table: of the tasks' ids.

    Raises:
        ConfigError: if there is only one task.
    """
    _check_several(tasks)
    ids = torch.tensor([table.index(name) for name in table.check(tasks)])
    other = ids.roll(-(len(ids) // 2 if offset is None else offset))
    text, bank = tables.text, tables.trajectories
    if text is not None:
        swapped = text.clone()
        swapped[ids] = text[other]
        text = swapped
    if bank is not None:
        renamed = torch.arange(len(table))
        renamed[other] = ids  # the prompt of ``other`` becomes that of ``ids``
        # A prompt of no trajectory in the training data: it is not one of the task's own.
        bank = TrajectoryPromptBank(
            bank.prompts, renamed[bank.task_id], torch.full_like(bank.trajectory_id, -1)
        )
    return PromptTables(text, bank)


def nearest_prompts(
    tasks: Sequence[str],
    trained: Sequence[str],
    tables: PromptTables,
    *,
    table: TaskTable = METAWORLD_TASKS,
) -> PromptTables:
    """Give every task the demonstrations of trained tasks, that of the nearest text first.

    Texts are compared by the cosine of their embeddings, less the mean of the trained tasks'.

    Args:
        tasks: that get them, one of each trained task.
        trained: tasks with demonstrations in ``tables``.
        tables: the tasks' own prompts, texts of all of them.
        table: of the tasks' ids.

    Raises:
        ConfigError: if there are no texts, demonstrations or trained tasks.
    """
    text, bank = tables.text, tables.trajectories
    if text is None or bank is None or not trained:
        raise ConfigError(
            "nearest_text needs texts and demonstrations of trained tasks: use prompt=both"
        )
    known = torch.tensor([table.index(name) for name in trained])
    ids = torch.tensor([table.index(name) for name in table.check(tasks)])
    similarity = centred_similarity(text[ids], text[known])
    nearest = known[similarity.argsort(dim=-1, descending=True)]  # [tasks, trained]
    first = {int(task): int(bank.rows_of(int(task))[0]) for task in known}
    rows = torch.tensor([first[task] for task in nearest.flatten().tolist()])
    found = ids.repeat_interleave(len(known))
    return PromptTables(
        text, TrajectoryPromptBank(bank.prompts[rows], found, torch.full_like(found, -1))
    )


def confusion(
    evaluator: Evaluator,
    policy: LLMDPDPolicy,
    tables: PromptTables,
    *,
    table: TaskTable = METAWORLD_TASKS,
) -> dict[str, dict[str, float]]:
    """Success, or score, of every task under every task's prompts.

    The evaluator is called once a task, of which it needs two at least. Returns fractions by task,
    then by the task whose prompts were used.
    """
    tasks = evaluator.tasks
    rates: dict[str, dict[str, float]] = {task: {} for task in tasks}
    for offset in range(len(tasks)):
        swapped = swap_prompts(tasks, tables, offset, table=table)
        summary = summarise(evaluator(policy, swapped), tasks, [])
        for position, task in enumerate(summary.tasks):
            other = tasks[(position + offset) % len(tasks)]
            rates[task.task][other] = task.percent.value / 100
    return rates


def shuffle_steps(bank: TrajectoryPromptBank, seed: int = 0) -> TrajectoryPromptBank:
    """The same prompts with the steps of each in random order; padding stays at the end.

    Raises:
        ConfigError: if the prompts hold several demonstrations: shuffle before.
    """
    if bank.is_concatenated:
        raise ConfigError(
            "concatenated demonstrations cannot be shuffled: shuffle, then concatenate"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(bank)).unsqueeze(-1)
    prompts = bank.prompts.clone(recurse=False)
    for mask in bank.masks:
        order = torch.rand(prompts[mask].shape, generator=generator)
        order = order.masked_fill(~prompts[mask], 2.0).argsort(dim=-1)
        for name in bank.entries_under(mask):
            prompts[name] = prompts[name][rows, order]
    return TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)


def random_strings(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Random letters and blanks, as many as each text has characters."""
    generator = random.Random(seed)
    letters = string.ascii_lowercase + "    "
    return ["".join(generator.choices(letters, k=len(text))) for text in texts]
