"""``llmdpd eval``: evaluate a saved policy on tasks, texts and demonstrations of the user's."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdpd_torchrl.utils.errors import ConfigError, IncompleteError, run_command_line

if TYPE_CHECKING:
    from llmdpd_torchrl.experiments.saved_policy import PreparedEvaluation

EPILOG = """\
Without --tasks: the tasks of the demonstrations, of these the held-out ones if there are any;
without demonstrations the policy's held-out tasks, or else those that it was trained on. With
several tasks, each takes the demonstrations of its own name, from a folder of `llmdpd data collect`
for example; a file of one task serves any single task. A text given with --text is for all tasks.
Without --episode: on Meta-World the first successful episode; where the data do not say what
success is, as in recorded locomotion, the one of highest return.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that ``llmdpd eval`` and ``llmdpd video`` share."""
    parser.add_argument(
        "policy",
        metavar="POLICY",
        help="a run's folder, a policy's folder, or OWNER/NAME on the Hub",
    )
    tasks = parser.add_argument_group("what to do")
    tasks.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="Meta-World's (door-lock-v3), Hopper-v4, hopper-medium, halfcheetah-vel-2.25, ...",
    )
    tasks.add_argument(
        "--demonstration",
        action="append",
        default=[],
        metavar="FILE",
        help="recorded episodes: HDF5 in D4RL's layout, a folder of `llmdpd data collect`, or one "
        "TASK.safetensors of it; may be repeated",
    )
    tasks.add_argument(
        "--episode",
        type=int,
        metavar="N",
        help="episode of the demonstrations' file, from 0 (default: see below)",
    )
    tasks.add_argument("--text", help="the task in your own words (default: the built-in text)")
    tasks.add_argument(
        "--text-file", metavar="FILE", help="a prompt file (YAML) with a text for each task"
    )
    tasks.add_argument(
        "--task-file",
        metavar="FILE",
        help="tasks of your own, as for `llmdpd train-own`: their environments and texts, and "
        "demonstrations where none is given",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--max-steps", type=int, metavar="N", help="time limit of an episode")
    how.add_argument("--seed", type=int, default=0, help="of the goals (default: 0)")
    how.add_argument(
        "--acting",
        choices=["sampled", "ranked", "deterministic"],
        help="how actions are chosen (default: the policy decides)",
    )
    how.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="import a denoiser or text encoder of this package, if the policy names one",
    )  # fmt: skip
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_evaluation_options(parser: argparse.ArgumentParser, episodes: int, folder: str) -> None:
    """The options of the commands that evaluate many episodes into a folder."""
    parser.add_argument(
        "--episodes", type=int, default=episodes, help=f"per task (default: {episodes})"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"folder (default: a new one, {folder}-POLICY)"
    )


def prepare(options: argparse.Namespace, **settings: Any) -> PreparedEvaluation:
    """What :func:`add_options` names, loaded; prints which demonstrations are used."""
    from llmdpd_torchrl.experiments.saved_policy import prepare_evaluation

    prepared = prepare_evaluation(
        options.policy,
        tasks=options.tasks,
        demonstrations=options.demonstration,
        episode=options.episode,
        text=options.text,
        text_file=options.text_file,
        task_file=options.task_file,
        max_steps=options.max_steps,
        device=options.device,
        trust=options.trust,
        seed=options.seed,
        acting=options.acting,
        **settings,
    )
    for line in prepared.demonstrations:
        print(line)
    return prepared


def free_path(stem: str, suffix: str = "") -> Path:
    """A path here that does not exist yet: ``stem``, ``stem-2``, ..."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := Path(name + suffix)).exists())


def new_folder(stem: str) -> Path:
    """Make the folder of :func:`free_path`; of several processes, each gets another."""
    while True:
        path = free_path(stem)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code: 1 if an episode crashed."""
    parser = argparse.ArgumentParser(
        prog="llmdpd eval",
        description="Evaluate a saved policy, and write results.json, results.md and a plot, which "
        "`llmdpd report` reads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    add_evaluation_options(parser, 10, "evaluation")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.output is not None and (options.output / "results.json").exists():
        raise ConfigError(
            f"--output {options.output} holds the results of another evaluation: name a new folder"
        )
    prepared = prepare(options, episodes_per_task=options.episodes)
    from llmdpd_torchrl.evaluation import Evaluator
    from llmdpd_torchrl.evaluation.outputs import write_evaluation
    from llmdpd_torchrl.utils.files import make_writable_folder

    policy, settings = prepared.policy, prepared.settings
    with Evaluator(
        prepared.seen + prepared.unseen, settings, suite=prepared.suite, workers=options.workers
    ) as evaluator:
        is_new = options.output is None or not options.output.exists()
        output = options.output or new_folder(f"evaluation-{prepared.label}")
        make_writable_folder(output, "output", "--output")
        try:
            episodes = evaluator(policy, prepared.tables)
        except BaseException:
            if is_new:
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise
    write_evaluation(
        output,
        episodes,
        prepared.suite,
        seen=prepared.seen,
        unseen=prepared.unseen,
        about={
            "name": output.resolve().name,
            "policy": options.policy,
            "seed": policy.info.get("seed", 0),
            "fingerprint": policy.info.get("fingerprint"),
            "updates": policy.info.get("updates"),
            "prompt": policy.config.prompt,
            "evaluation": settings.to_dict(),
            "texts": dict(prepared.texts),
            "demonstrations": list(prepared.demonstrations),
        },
    )
    print(f"results: {output}")
    crashed = sum(episode.error is not None for episode in episodes)
    if crashed:
        raise IncompleteError(
            f"{crashed} of {len(episodes)} episodes crashed and count as failures; "
            f"{output / 'results.json'} says why"
        )
    return 0
