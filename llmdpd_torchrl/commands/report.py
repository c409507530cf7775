"""``llmdpd report``: a folder of runs as tables, plots and one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmdpd_torchrl.utils.errors import run_command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code: 1 if an episode of a run crashed."""
    parser = argparse.ArgumentParser(
        prog="llmdpd report",
        description="Reads every results.json in a folder and below, and what lies beside each: "
        "metrics.csv, checkpoint/, confusion.json, videos. Runs whose names differ in their seed "
        "alone are one variant.",
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="of runs (default: outputs)"
    )
    parser.add_argument("--output", type=Path, help="folder to write to (default: FOLDER/report)")
    return run_command_line(parser, _report, arguments)


def _report(options: argparse.Namespace) -> int:
    # Not above: `--help` should not wait for torch.
    from rich import box, table
    from rich.console import Console

    from llmdpd_torchrl.evaluation.report import compare, write_report
    from llmdpd_torchrl.evaluation.results import find_runs, variants

    page = write_report(options.folder, options.output)
    found = compare(variants(find_runs(options.folder)))
    printed = table.Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    # The name, which tells the runs apart, goes on in the next line where a terminal is narrow.
    printed.add_column(found.head[0], overflow="fold")
    for name in found.head[1:]:
        printed.add_column(name, justify="right")
    for row in found.rows:
        printed.add_row(*row)
    Console().print(printed)
    print(page)
    failed = sum(int(row[found.head.index("failed")]) for row in found.rows)
    return 1 if failed else 0
