"""The structure of the package, and what checking it takes: ``results/house.json``.

``files`` and ``lines`` of Python, ``circles`` of files that import each other and
``upward_imports`` between packages (wherever an import stands, also inside functions),
``dialect_words``, which the field has better words for, and ``loss_lines`` of the loss's file. With
``--tests``, ``default_tests_minutes`` and ``coverage`` of lines in percent, of the README's test
command; with ``--ci``, ``ci_minutes`` of ``.ci/run``. What is not measured keeps its last value.

    python -m benchmarks.house                  # seconds
    python -m benchmarks.house --tests --ci     # half an hour, on an idle machine
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx

from benchmarks.common import RESULTS, write_figures
from tests.test_layers import MAY_NOT, ORDER

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmdpd_torchrl"
LOSS = PACKAGE / "objectives" / "llmdpd.py"
DIALECT = re.compile(
    r"\b(learnt|anew|lanes?|mend\w*|broke off|breaks off|can not|shown|kept|drawn|told|whole"
    r"|by heart|asked for|likewise)\b"
)
MEASURED = ("default_tests_minutes", "coverage", "ci_minutes")


class File(NamedTuple):
    """A file of the package: its size, and the modules that it imports, or could."""

    lines: int
    dialect_words: int
    imports: set[str]


def read_files(package: Path) -> dict[str, File]:
    """All files of a package, by module name; imports are those of other files in it."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    found = {}
    for name, path in paths.items():
        text = path.read_text()
        # A package's face re-exports its files: through it one file does not depend on another.
        is_face = path.name == "__init__.py"
        used = set() if is_face else imported(ast.parse(text), name) & paths.keys() - {name}
        used = {other for other in used if paths[other].name != "__init__.py"}
        found[name] = File(text.count("\n"), len(DIALECT.findall(text)), used)
    return found


def imported(tree: ast.AST, module: str) -> set[str]:
    """Names that a module imports, absolute; of ``from a import b``, both ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = module.split(".")[: -node.level] + base
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return found


def circles(files: Mapping[str, File]) -> list[list[str]]:
    """Groups of files each of which imports, by some way, all others of its group."""
    graph = networkx.DiGraph(
        (name, other) for name, file in files.items() for other in file.imports
    )
    return [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]


def upward_imports(
    files: Mapping[str, File], order: Sequence[str], may_not: Mapping[str, set[str]]
) -> list[str]:
    """Imports of a later package in ``order``, or of one that a package may not import."""
    found = []
    for name, file in files.items():
        for other in sorted(file.imports):
            here, there = (module.split(".")[1] for module in (name, other))
            if here != there and here in order and there in order:
                is_up = order.index(there) > order.index(here)
                if is_up or there in may_not.get(here, ()):
                    found.append(f"{name} -> {other}")
    return found


def structure() -> tuple[dict[str, float], dict[str, Any]]:
    """The figures that need no run, and what they are from."""
    files = read_files(PACKAGE)
    raw: dict[str, Any] = {
        "circles": circles(files),
        "upward_imports": upward_imports(files, ORDER, MAY_NOT),
        "files": {name: file._asdict() | {"imports": sorted(file.imports)}
                  for name, file in files.items()},
    }  # fmt: skip
    figures: dict[str, float] = {
        "files": len(files),
        "lines": sum(file.lines for file in files.values()),
        "circles": len(raw["circles"]),
        "upward_imports": len(raw["upward_imports"]),
        "dialect_words": sum(file.dialect_words for file in files.values()),
        "loss_lines": LOSS.read_text().count("\n"),
    }
    return figures, raw


def run_tests() -> dict[str, float]:
    """Time the README's test command, and the coverage of lines under it."""
    found = re.search(r"^pip install .*&& (pytest.*)$", (ROOT / "README.md").read_text(), re.M)
    if not found:
        raise SystemExit("README.md has no test command: pip install ... && pytest ...")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        options = [f"--cov={PACKAGE.name}", "--cov-report=", f"--cov-report=json:{report}"]
        command = [sys.executable, "-m", *shlex.split(found[1], comments=True), *options]
        minutes = timed(command)
        covered = json.loads(report.read_text())["totals"]["percent_covered"]
    return {"default_tests_minutes": minutes, "coverage": covered}


def timed(command: Sequence[str]) -> float:
    """Minutes that a command takes; it must succeed."""
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    return (time.monotonic() - started) / 60


def main() -> int:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", action="store_true", help="time the tests, with coverage")
    parser.add_argument("--ci", action="store_true", help="time .ci/run")
    options = parser.parse_args()
    path = RESULTS / "house.json"
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    figures, raw = structure()
    figures |= {name: before[name] for name in MEASURED if name in before}
    if options.tests:
        figures |= run_tests()
    if options.ci:
        figures["ci_minutes"] = timed([str(ROOT / ".ci" / "run")])
    write_figures("house", figures, raw, "python -m benchmarks.house --tests --ci")
    for line in (*map(", ".join, raw["circles"]), *raw["upward_imports"]):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
