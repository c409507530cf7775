"""A saved policy, and the tasks and prompts that a command line gives it.

What is wrong is said in the words of the command line's options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from llmdpd_torchrl.envs import GYM_MUJOCO_TASKS
from llmdpd_torchrl.evaluation import EvaluationSettings, GymMujocoSuite, Suite, video
from llmdpd_torchrl.experiments.config import choose_device
from llmdpd_torchrl.experiments.given_demonstrations import (
    DemonstrationSource,
    demonstrations_of,
    open_source,
)
from llmdpd_torchrl.experiments.locomotion import ORACLE, level_protocol, speed_protocol
from llmdpd_torchrl.experiments.metaworld import random_texts
from llmdpd_torchrl.experiments.own_tasks import OwnTasks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import (
    PromptTables,
    TextPrompt,
    load_text_prompts,
    task_velocity,
    velocity_prompt,
)
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError


@dataclass(frozen=True)
class PreparedEvaluation:
    """A policy with all that an evaluation, or a video, of it needs.

    Attributes:
        policy: on its device.
        label: the policy's name, for files: that of its run, folder or repository.
        suite: the environments of the tasks.
        settings: see there.
        tables: the prompts of each task.
        seen: the tasks that the policy was trained on.
        unseen: the others.
        texts: by task, the words that the policy reads.
        paraphrases: by task, the built-in or the file's other words, where there are some.
        rollouts: by task, the demonstrations that the policy reads.
        demonstrations: a line about each demonstration.
        objectives: by task, what is to be done, for captions.
    """

    policy: LLMDPDPolicy
    label: str
    suite: Suite
    settings: EvaluationSettings
    tables: PromptTables
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    texts: Mapping[str, str]
    paraphrases: Mapping[str, str]
    rollouts: Mapping[str, Sequence[TensorDictBase]]
    demonstrations: Sequence[str]
    objectives: Mapping[str, str]


def prepare_evaluation(
    policy: str,
    *,
    tasks: Sequence[str] | None = None,
    demonstrations: Sequence[str] = (),
    episode: int | None = None,
    text: str | None = None,
    text_file: str | None = None,
    task_file: str | None = None,
    max_steps: int | None = None,
    device: str = "auto",
    limit: int | None = None,
    trust: Sequence[str] = (),
    **settings: Any,
) -> PreparedEvaluation:
    """Load a policy and its prompts, and choose its tasks.

    Args:
        policy: a run's folder, the policy's own, or an id on the Hub.
        tasks: names; default: those of ``demonstrations``, held-out ones if there are such, or,
            without any, the policy's held-out tasks, or those that it was trained on.
        demonstrations: files and folders of recorded episodes, see :func:`load_episodes`, or of
            collected ones. With several tasks, each takes those of its name.
        episode: number of the episode among those of its task; default: the first successful one,
            or that of highest return where nothing says what success is.
        text: the task in words, for all tasks; default: the built-in texts, or the random letters
            that the policy was trained with.
        text_file: a prompt file with a text for each task.
        task_file: of own tasks, with their environments, texts and, where no ``demonstrations`` are
            given, those too; see :class:`~llmdpd_torchrl.experiments.own_tasks.OwnTasks`.
        max_steps: time limit, also of demonstrations whose files name none; default: 500 on
            Meta-World, elsewhere the environment's own.
        device: as ``device`` of a training.
        limit: largest number of tasks that are chosen by default.
        trust: packages of the policy's own parts that may be imported.
        **settings: of :class:`EvaluationSettings`.

    Raises:
        ConfigError: if a prompt is missing, not read, or for another number of tasks, or there is
            no such task.
        DataError: if policy or demonstrations cannot be read, or no episode is successful.
        PromptError: if a demonstration or a text does not fit the policy.
    """
    loaded = LLMDPDPolicy.from_pretrained(policy_folder(policy), choose_device(device), trust=trust)
    own = None if task_file is None else OwnTasks.read(task_file)
    sources = [open_source(source, max_steps, own) for source in demonstrations]
    if own is not None and not sources and loaded.config.uses_trajectory:
        episodes = own.load()
        sources = [DemonstrationSource(str(own.path), episodes.tasks, lambda task: episodes)]
    _check_prompts(loaded, sources, text, text_file)
    if own is None:
        names = _choose_tasks(loaded, tasks, sources, limit)
    else:
        chosen_tasks = tasks or own.split.held_out or own.split.train
        names = own.split.table.check(chosen_tasks)[: None if tasks else limit]
    if tasks is None and text is not None and len(names) > 1:
        raise ConfigError(
            f"--text is the text of one task, and the default are {len(names)}: name it, --tasks "
            f"{names[0]}"
        )
    hide_goal = bool(loaded.info.get("hide_goal"))
    options = {"hide_goal": hide_goal, **settings}
    if own is None:
        suite, prompts, found = _make_suite(names, loaded, sources, max_steps, options)
    else:
        found = EvaluationSettings(**options)
        ids = _ids(list(own.tasks), loaded)
        suite, prompts = own.suite(found.seed, max_steps=max_steps, ids=ids), own.prompts
    ids = {name: suite.task_id(name) for name in names}
    if text_file is not None:
        prompts = _read_texts(text_file, names)
    texts = {}
    if loaded.config.uses_text:
        texts = {name: prompts[name].render() if text is None else text for name in names}
        if text is None and text_file is None and loaded.info.get("texts") == "random":
            letters = random_texts(METAWORLD_TASKS.names)
            texts = {name: letters.get(name, words) for name, words in texts.items()}
    chosen = [demonstrations_of(name, names, sources, episode) for name in names] if sources else []
    rollouts = {name: [r for r, _ in some] for name, some in zip(names, chosen, strict=False)}
    tables = loaded.make_tables(
        {ids[name]: words for name, words in texts.items()},
        {ids[name]: some for name, some in rollouts.items()},
    )
    trained = _trained_tasks(loaded)
    return PreparedEvaluation(
        loaded, _label(policy), suite, found, tables,
        seen=tuple(name for name in names if name in trained),
        unseen=tuple(name for name in names if name not in trained),
        texts=texts,
        paraphrases={n: prompts[n].paraphrases[0] for n in texts if prompts[n].paraphrases},
        rollouts=rollouts,
        demonstrations=[line for some in chosen for _, line in some],
        objectives={
            name: text or prompts[name].objective or prompts[name].task for name in names
        },
    )  # fmt: skip


def rendering_problem(task_file: str | None) -> str:
    """Why no video can be made; empty if one can."""
    if task_file is not None:
        return OwnTasks.read(task_file).rendering_problem()
    return video.rendering_problem()


# --- the policy ---------------------------------------------------------------------------------


def policy_folder(name: str) -> str:
    """The policy's own folder in that of a run, or else the name as it is."""
    folder = Path(name) / "checkpoint"
    return str(folder) if LLMDPDPolicy.is_saved(folder) else name


def _label(name: str) -> str:
    path = Path(name)
    path = path.resolve() if path.exists() else path
    found = path.parent.name if path.name == "checkpoint" else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", found) or "policy"


def _trained_tasks(policy: LLMDPDPolicy) -> Sequence[str]:
    ids = [task for task in policy.config.trained_task_ids if task < len(METAWORLD_TASKS)]
    return policy.info.get("trained_tasks") or [METAWORLD_TASKS.names[task] for task in ids]


def _check_prompts(
    policy: LLMDPDPolicy,
    sources: Sequence[DemonstrationSource],
    text: str | None,
    text_file: str | None,
) -> None:
    """Refuse prompts that the policy does not read, and missing ones that it needs."""
    config = policy.config
    reads = f"the policy was trained with prompt={config.prompt}"
    if text is not None and text_file is not None:
        raise ConfigError("--text and --text-file are both given: leave one out")
    if text is not None and not text.strip():
        raise ConfigError("--text is empty: say what is to be done")
    option = "--text" if text_file is None else "--text-file"
    if (text is not None or text_file is not None) and not config.uses_text:
        raise ConfigError(f"{option} is given, but {reads} and reads no text: leave it out")
    if sources and not config.uses_trajectory:
        raise ConfigError(
            f"--demonstration is given, but {reads} and reads no demonstration: leave it out"
        )
    if config.uses_trajectory and not sources and not config.trajectory_dropout:
        raise ConfigError(
            f"{reads} and needs a demonstration of each task: --demonstration FILE, for example a "
            "folder of `llmdpd data collect`"
        )
    if len(sources) > 1 and not config.retrieves:
        raise ConfigError(
            f"--demonstration is given {len(sources)} times, but this policy reads one "
            "demonstration: give one"
        )
    if config.uses_text and policy.info.get("text_encoder") == ORACLE:
        raise ConfigError(
            f"the policy was trained with text_encoder={ORACLE}, a number in the place of a text: "
            "no words can prompt it"
        )


# --- tasks and texts ----------------------------------------------------------------------------


def _choose_tasks(
    policy: LLMDPDPolicy,
    tasks: Sequence[str] | None,
    sources: Sequence[DemonstrationSource],
    limit: int | None,
) -> tuple[str, ...]:
    if tasks is not None:
        return tuple(tasks)
    held_out = policy.info.get("held_out_tasks") or []
    recorded = tuple(dict.fromkeys(name for source in sources for name in source.tasks))
    names = tuple(name for name in recorded if name in held_out) or recorded
    names = names or tuple(held_out or _trained_tasks(policy))
    if not names:
        raise ConfigError("the policy does not say which tasks it is for: name some with --tasks")
    return names[:limit]


def _make_suite(
    names: Sequence[str],
    policy: LLMDPDPolicy,
    sources: Sequence[DemonstrationSource],
    max_steps: int | None,
    options: Mapping[str, Any],
) -> tuple[Suite, Mapping[str, TextPrompt], EvaluationSettings]:
    """The environments and built-in texts of the tasks, which are of one family."""
    of_metaworld = [name for name in names if name in METAWORLD_TASKS.names]
    if len(of_metaworld) == len(names):
        limit = EvaluationSettings.max_steps if max_steps is None else max_steps
        settings = EvaluationSettings(max_steps=limit, **options)
        return settings.suite(names), load_text_prompts(), settings
    if of_metaworld:
        other = next(name for name in names if name not in of_metaworld)
        raise ConfigError(
            f"--tasks: {of_metaworld[0]} is a task of Meta-World, {other} is not: evaluate one "
            "family at a time"
        )
    info = policy.info
    known = {
        "variants": dict(info.get("variants", {})),
        "references": dict(info.get("references", {})),
    }
    for source in sources:
        if source.speeds:
            protocol = speed_protocol(*source.speeds)
            known["variants"] |= protocol.variants
            known["references"] |= protocol.references
    recorded = [*info.get("task_table", ()), *(task for s in sources for task in s.tasks)]
    ids = _ids(names, policy)
    variants, references, prompts = {}, {}, {}
    for name in names:
        variant, prompts[name] = _locomotion(name, known["variants"], recorded)
        if name in known["references"]:
            references[name] = tuple(known["references"][name])
        elif "target_velocity" in variant:
            raise ConfigError(
                f"{name}: the policy's files do not say which returns score 0 and 100 at this "
                "speed; give --demonstration a recorded file of it, whose attribute 'tasks' does"
            )
        variants[name] = {
            **variant,
            "task_id": ids[name],
            **({} if max_steps is None else {"max_steps": max_steps}),
        }
    settings = EvaluationSettings(**options)
    return GymMujocoSuite(variants, references, seed=settings.seed), prompts, settings


def _ids(names: Sequence[str], policy: LLMDPDPolicy) -> dict[str, int]:
    """Ids of tasks: those of the training's table, and for others ones that it does not have."""
    table = list(policy.info.get("task_table", ()))
    free = 1 + max(len(table) - 1, *policy.config.trained_task_ids, -1)
    return {
        name: table.index(name) if name in table else free + number
        for number, name in enumerate(names)
    }


def _locomotion(
    name: str, known: Mapping[str, Mapping[str, Any]], recorded: Sequence[str]
) -> tuple[Mapping[str, Any], TextPrompt]:
    """The environment of a locomotion task, as :class:`GymMujocoSuite` reads it, and its text.

    It is one of the ``known`` ones or of the ``recorded`` names, a speed, or a level of D4RL's.
    """
    variant, speed = known.get(name), task_velocity(name)
    if variant is None and speed is not None:
        variant = {"target_velocity": speed, "max_steps": 200}
    if variant is not None and "target_velocity" in variant:
        return variant, velocity_prompt(variant["target_velocity"])
    environment = name if name in GYM_MUJOCO_TASKS else None
    environment = environment if variant is None else variant["task"]
    level = re.sub(r"-v\d+$", "", name.lower().replace("_", "-"))
    try:
        is_known = name in recorded or level in load_text_prompts("gym_mujoco")
        if environment is None and not is_known:
            METAWORLD_TASKS.index(name)
        protocol = level_protocol([name], [], environment=environment)
    except ConfigError as error:
        reason = error if str(error).startswith("unknown task") else f"unknown task {name!r}"
        hint = "; name the task with --tasks, such as --tasks door-lock-v3"
        raise ConfigError(
            f"--tasks: {reason} (others are {', '.join(GYM_MUJOCO_TASKS)}, D4RL's levels such as "
            f"hopper-medium, and halfcheetah-vel-SPEED){hint if name in recorded else ''}"
        ) from None
    return variant or protocol.variants[name], protocol.prompts[name]


def _read_texts(file: str, names: Sequence[str]) -> Mapping[str, TextPrompt]:
    prompts = load_text_prompts(Path(file))
    missing = [name for name in names if name not in prompts]
    if missing:
        raise ConfigError(
            f"--text-file {file} has no task {missing[0]!r}; it has {', '.join(prompts)}"
        )
    return prompts
