"""``llmdpd audit``: does a saved policy listen to its text, and to its demonstration?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdpd_torchrl.commands.eval import add_evaluation_options, add_options, new_folder, prepare
from llmdpd_torchrl.utils.errors import ConfigError, IncompleteError, PromptError, run_command_line

if TYPE_CHECKING:
    from llmdpd_torchrl.evaluation.audit import TaskPrompts
    from llmdpd_torchrl.evaluation.statistics import EpisodeResult
    from llmdpd_torchrl.experiments.saved_policy import PreparedEvaluation

EPILOG = """\
Evaluated are the same episodes with the tasks' own prompts, with those of other tasks, with the
text in other words, with random letters in its place, and without, as far as the policy can act
without. A condition that needs the language model is left out, and named, where that is not here.
Differences of a few points need many episodes: with five tasks, 20 of each tell 10 points apart.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit and return the exit code: 1 if a condition is left out or an episode crashed."""
    parser = argparse.ArgumentParser(
        prog="llmdpd audit",
        description="Find out whether a saved policy listens to its prompts, and write a page with "
        "the verdict, audit.md, and audit.json. An audit that was interrupted goes on if it is "
        "called again with the same --output.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    add_evaluation_options(parser, 20, "audit")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.text is not None:
        raise ConfigError("--text is the text of one task: give --text-file with one for each")
    prepared = prepare(options, episodes_per_task=options.episodes)
    from llmdpd_torchrl.evaluation import Evaluator
    from llmdpd_torchrl.evaluation.audit import conditions, judge, run_conditions
    from llmdpd_torchrl.evaluation.results import print_markdown
    from llmdpd_torchrl.utils.files import make_writable_folder, write_json, write_text

    policy, names = prepared.policy, prepared.seen + prepared.unseen
    tried = conditions(policy, _prompts(prepared, names))
    output = options.output or new_folder(f"audit-{prepared.label}")
    make_writable_folder(output, "output", "--output")
    about = {
        "policy": options.policy,
        "fingerprint": policy.info.get("fingerprint"),
        "evaluation": prepared.settings.to_dict(),
        "tasks": list(names),
        "texts": dict(prepared.texts),
        "demonstrations": list(prepared.demonstrations),
    }
    path = output / "audit.json"
    done = _read(path, about)
    ids = {name: prepared.suite.task_id(name) for name in names}
    tables, left_out = {}, {}
    for condition in tried:
        try:
            tables[condition.name] = condition.tables(policy, ids)
        except PromptError as error:
            left_out[condition.name] = str(error)

    def keep(found: Mapping[str, Sequence[EpisodeResult]], **more: Any) -> None:
        episodes = {name: [asdict(one) for one in some] for name, some in found.items()}
        write_json(path, {"about": about, **more, "episodes": episodes})

    with Evaluator(
        names, prepared.settings, suite=prepared.suite, workers=options.workers
    ) as evaluator:
        episodes = run_conditions(evaluator, policy, tables, done=done, keep=keep)
    audit = judge(tried, episodes, left_out)
    keep(episodes, audit=audit.to_dict())
    page = audit.markdown(prepared.label)
    write_text(output / "audit.md", page)
    print_markdown(page)
    print(f"page: {output / 'audit.md'}")
    crashed = sum(one.error is not None for some in episodes.values() for one in some)
    if crashed or left_out:
        what = f"{crashed} episodes crashed" if crashed else f"{len(left_out)} conditions left out"
        raise IncompleteError(f"{what}; {path} says why")
    return 0


def _prompts(prepared: PreparedEvaluation, names: Sequence[str]) -> dict[str, TaskPrompts]:
    from llmdpd_torchrl.evaluation.audit import TaskPrompts

    return {
        name: TaskPrompts(
            prepared.texts.get(name),
            prepared.paraphrases.get(name),
            prepared.rollouts.get(name, ()),
        )
        for name in names
    }


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, list[EpisodeResult]]:
    """The episodes that an interrupted audit has left."""
    from llmdpd_torchrl.evaluation.statistics import EpisodeResult

    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["about"] == json.loads(json.dumps(about))
        episodes = {n: [EpisodeResult(**one) for one in s] for n, s in found["episodes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--output: {path} is no audit of this command: {error}") from error
    if not same:
        raise ConfigError(f"--output {path.parent} holds another audit: name a new folder")
    return episodes
