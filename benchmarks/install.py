"""The wheel in empty environments: ``results/install.json``.

Builds the wheel and installs it twice, each time into a new environment, and runs it in an empty
folder with a cache of its own:

- without an extra: every module is imported that needs no simulator, and the doctests run;
- with the extra ``metaworld``: ``llmdpd info``, ``train preset=smoke``, ``eval`` and ``report``.

``wheel_mb``, ``core_install_mb`` (what the first environment holds; torch is most of it) and
``core_install_s``, ``smoke_from_wheel_s`` of the training, and ``faults_closed``: of the faults
that users have found (``benchmarks/faults.yaml``), those all of whose tests pass.

    python -m benchmarks.install                       # five minutes, writes the figures
    python -m benchmarks.install --python python3.13   # another interpreter: writes nothing
    python -m benchmarks.install --torch 2.14.1        # another torch: writes nothing
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import write_figures

ROOT = Path(__file__).parents[1]
#: What a user runs first, in this order and in one folder.
FIRST_COMMANDS = (
    ["info"],
    ["train", "preset=smoke", "progress=false"],
    ["data", "collect", "demos", "--tasks", "door-close-v3", "--episodes", "1", "--noise", "0"],
    ["eval", "outputs/smoke-both-seed0", "--demonstration", "demos", "--episodes", "2"],
    ["report"],
)


class Environment:
    """A new virtual environment beside an empty folder, in which its commands run.

    Args:
        folder: of both, which must not exist.
        python: the interpreter.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.work = folder / "environment", folder / "work"
        self.work.mkdir(parents=True)
        run([python, "-m", "venv", str(self.folder)])
        self.pip("install", "-q", "-U", "pip")

    @property
    def packages(self) -> Path:
        """The folder that packages are installed into."""
        return next(self.folder.glob("lib/python*/site-packages"))

    def pip(self, *arguments: str) -> None:
        """Run its pip."""
        run([str(self.folder / "bin" / "python"), "-m", "pip", *arguments])

    def run(self, program: str, *arguments: str, folder: Path | None = None) -> float:
        """Run one of its programs, by default in its empty folder; the seconds that it took."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"LLMDPD_CACHE": str(self.work / "cache"), "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        command = [str(self.folder / "bin" / program), *arguments]
        run(command, cwd=folder or self.work, env=environment)
        return time.monotonic() - started


def run(command: Sequence[str], **options: Any) -> None:
    """Run a command, show it, and stop with what it printed if it fails."""
    print("+", " ".join(map(str, command)), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def megabytes(folder: Path) -> float:
    """The size of all files in a folder, links not followed."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in paths) / 1e6


def check_core(environment: Environment, wheel: Path, limits: Sequence[str]) -> dict[str, float]:
    """Install the wheel without an extra, import it, and run the doctests."""
    before, started = megabytes(environment.packages), time.monotonic()
    environment.pip("install", "-q", *limits, str(wheel))
    figures = {
        "core_install_s": time.monotonic() - started,
        "core_install_mb": megabytes(environment.packages) - before,
    }
    environment.run(
        "python", "-c", "import llmdpd_torchrl as l; [getattr(l, n) for n in l.__all__]"
    )
    environment.run("llmdpd", "info")
    environment.pip("install", "-q", *limits, "pytest", "pytest-timeout")
    tests = environment.work / "doctests"  # what the package's own configuration says of them
    shutil.copytree(ROOT / "llmdpd_torchrl", tests / "llmdpd_torchrl")
    shutil.copytree(ROOT / "configs", tests / "configs")
    for name in ("pyproject.toml", "conftest.py"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tests)
    environment.run(
        "python", "-m", "pytest", "-q", "-o", "addopts=--doctest-modules", "llmdpd_torchrl",
        folder=tests,
    )  # fmt: skip
    return figures


def check_commands(environment: Environment, wheel: Path, limits: Sequence[str]) -> float:
    """Install the wheel with the simulators and run the first commands; the training's seconds."""
    environment.pip("install", "-q", *limits, f"{wheel}[metaworld]")
    seconds = {command[0]: environment.run("llmdpd", *command) for command in FIRST_COMMANDS}
    return seconds["train"]


def faults() -> dict[str, bool]:
    """By fault of ``faults.yaml``, whether all its tests pass here."""
    found = {}
    for name, tests in yaml.safe_load((ROOT / "benchmarks" / "faults.yaml").read_text()).items():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        found[name] = done.returncode == 0
        print(f"{'closed' if found[name] else 'OPEN'}: {name}", flush=True)
    return found


def main() -> int:
    """Build, install, run, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", help="another interpreter than this; writes nothing")
    parser.add_argument("--torch", help="another version than that of constraints.txt; likewise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmdpd install ") as made:
        folder = Path(made)
        limits = ["-c", str(limited(folder, options.torch))]
        run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", made, str(ROOT)])
        (wheel,) = folder.glob("*.whl")
        python = options.python or sys.executable
        figures = {"wheel_mb": wheel.stat().st_size / 1e6}
        figures |= check_core(Environment(folder / "core", python), wheel, limits)
        with_simulators = Environment(folder / "metaworld", python)
        figures["smoke_from_wheel_s"] = check_commands(with_simulators, wheel, limits)
    if options.python or options.torch:
        print({name: round(value, 1) for name, value in figures.items()})
        return 0
    closed = faults()
    figures["faults_closed"] = sum(closed.values())
    write_figures("install", figures, {"faults": closed}, "python -m benchmarks.install")
    return 0 if all(closed.values()) else 1


def limited(folder: Path, torch: str | None) -> Path:
    """The constraints, with another version of torch if one is given."""
    path = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if torch is not None:
        lines = [f"torch=={torch}" if line.startswith("torch==") else line for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
