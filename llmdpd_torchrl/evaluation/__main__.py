"""Command line of the evaluation: ``python -m llmdpd_torchrl.evaluation --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from llmdpd_torchrl.evaluation.report import compare, write_report
from llmdpd_torchrl.evaluation.results import find_runs, variants
from llmdpd_torchrl.utils.errors import run_command_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 1 if an episode of a run crashed; 2, with one line on stderr, for a user
        error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llmdpd_torchrl.evaluation", description="Reports of evaluated runs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="turn a folder of runs into tables, plots and one HTML page",
        description="Reads every results.json in a folder and below, and what lies beside each: "
        "metrics.csv, checkpoint/, confusion.json, videos. Runs whose names differ in their seed "
        "alone are one variant.",
    )
    report.add_argument("folder", type=Path, help="folder of runs, such as outputs/")
    report.add_argument("--output", type=Path, help="folder to write to (default: FOLDER/report)")
    return run_command_line(parser, _report, arguments)


def _report(options: argparse.Namespace) -> int:
    page = write_report(options.folder, options.output)
    table = compare(variants(find_runs(options.folder)))
    Console().print(Markdown(table.markdown()))
    print(page)
    failed = sum(int(row[table.head.index("failed")]) for row in table.rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
