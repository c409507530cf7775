"""``llmdpd video``: record episodes of a saved policy, with the task's words below."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmdpd_torchrl.commands.eval import EPILOG, add_options, free_path, prepare
from llmdpd_torchrl.utils.errors import ConfigError, run_command_line

MOST_TASKS = 4
"""Tasks of a video, side by side, unless more are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="llmdpd video",
        description="Record an episode of each task, side by side, as an MP4 with its words.",
        epilog=EPILOG + f"Of default tasks, the first {MOST_TASKS} are recorded.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(480, 360),
        metavar=("WIDTH", "HEIGHT"),
        help="of a task's image, in pixels (default: 480 360)",
    )
    parser.add_argument("--every", type=int, default=2, help="steps per frame (default: 2)")
    parser.add_argument("--fps", type=float, default=30, help="frames per second (default: 30)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="an .mp4 (default: a new one, POLICY.mp4)"
    )
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    sizes = {"--every": options.every, "--fps": options.fps, "--size": min(options.size)}
    for name, value in sizes.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}: it must be above 0")
    if options.output is not None and options.output.suffix != ".mp4":
        raise ConfigError(f"--output is {options.output}: name a file that ends in .mp4")
    from llmdpd_torchrl.evaluation.video import record_grid, task_caption
    from llmdpd_torchrl.experiments.saved_policy import rendering_problem
    from llmdpd_torchrl.trainers.loggers import write_mp4
    from llmdpd_torchrl.utils.files import make_writable_folder

    prepared = prepare(options, episodes_per_task=1, limit=MOST_TASKS)
    problem = rendering_problem(options.task_file)
    if problem:
        raise ConfigError(problem)
    output = options.output or free_path(prepared.label, ".mp4")
    make_writable_folder(output.parent, "output", "--output")
    given = ["text"] * bool(prepared.texts) + ["demonstration"] * bool(prepared.demonstrations)
    prompt = " and ".join(given) or "none"
    captions = {
        task: task_caption(
            task, prepared.objectives[task], is_seen=task in prepared.seen, prompt=prompt
        )
        for task in (*prepared.seen, *prepared.unseen)
    }
    frames, _ = record_grid(
        prepared.policy,
        captions,
        prepared.tables,
        settings=prepared.settings,
        suite=prepared.suite,
        every=options.every,
        size=tuple(options.size),
    )
    write_mp4(output, frames, options.fps)
    print(f"video: {output}")
    return 0
