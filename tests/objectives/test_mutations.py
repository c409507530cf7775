"""The table of mistakes: its tests exist, the README lists it, and every mistake is caught."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("mutations", TESTS / "mutations.py")
mutations = importlib.util.module_from_spec(spec)
sys.modules["mutations"] = mutations
spec.loader.exec_module(mutations)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_named_test_exists(mutation):
    path, _, name = mutation.test.partition("::")
    spec = importlib.util.spec_from_file_location("named", TESTS.parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(getattr(module, name))


def test_the_readme_shows_the_table():
    table = (TESTS / "README.md").read_text().partition("## Mistakes")[2]
    rows = re.findall(r"^\| (.+?) \| `(\S+)` \|$", table, re.MULTILINE)
    expected = [(m.name, m.test.removeprefix("tests/")) for m in mutations.MUTATIONS]
    assert rows == expected


@pytest.mark.slow
def test_every_mistake_is_caught():
    script = [sys.executable, str(TESTS / "mutations.py")]
    result = subprocess.run(script, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
