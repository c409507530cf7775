"""Examples are run as a person runs them: as commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def run_example():
    def run(script, folder, *overrides, **environment):
        return subprocess.run(
            [sys.executable, str(EXAMPLES / script), *overrides],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def check_mistake(run_example):
    """A command that must end in one clear line, and with nothing made."""

    def check(script, folder, overrides, message):
        process = run_example(script, folder, *overrides)
        assert process.returncode == 2, process.stdout + process.stderr
        lines = process.stderr.strip().splitlines()
        assert len(lines) == 1, process.stderr
        assert lines[0].startswith("error: ")
        assert message in lines[0]
        assert not list(folder.rglob("policy.json"))

    return check
