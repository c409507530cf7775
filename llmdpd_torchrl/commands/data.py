"""``llmdpd data``: collect a dataset, or show the content of one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data.manifest import Manifest
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, SPLITS
from llmdpd_torchrl.utils.errors import run_command_line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmdpd data", description="Collect a dataset, or show the content of one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser(
        "collect",
        help="collect Meta-World episodes with scripted experts (resumes what is there)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    collect.add_argument("folder", help="of the dataset; created if it does not exist")
    collect.add_argument(
        "--tasks",
        nargs="+",
        default=["all"],
        help=f"task names, 'all', or a split's training tasks: {', '.join(SPLITS)}",
    )
    defaults = CollectionSettings()
    collect.add_argument("--episodes", type=int, default=defaults.episodes_per_task, help="a task")
    collect.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=list(defaults.noise_levels),
        help="levels of action noise; the episodes of a task cycle through them",
    )
    collect.add_argument("--seed", type=int, default=defaults.seed, help="of placements and noise")
    collect.add_argument("--workers", type=int, default=None, help="processes; None: one per core")
    show = commands.add_parser("show", help="print the tasks and figures of a dataset")
    show.add_argument("folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command_line(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.command == "collect":
        tasks = options.tasks
        if tasks == ["all"]:
            tasks = METAWORLD_TASKS.names
        elif len(tasks) == 1 and tasks[0] in SPLITS:
            tasks = SPLITS[tasks[0]].train
        manifest = collect_metaworld(
            options.folder,
            tasks,
            CollectionSettings(
                episodes_per_task=options.episodes,
                noise_levels=tuple(options.noise),
                seed=options.seed,
            ),
            workers=options.workers,
        )
    else:
        manifest = Manifest.read(options.folder)
    for name, record in manifest.tasks.items():
        print(
            f"{name:28s} {len(record.episodes):5d} episodes {record.transitions:8d} transitions  "
            f"success {record.success_rate:.2f}  mean return {record.mean_return:8.1f}"
        )
    print(f"episode success {manifest.episode_success:.3f}  data hash {manifest.data_hash}")
    return 0
