"""What the package says that it needs, beside what it imports and what the tests run with."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {
    extra: [Requirement(text) for text in texts]
    for extra, texts in PROJECT["project"]["optional-dependencies"].items()
}
TESTED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
TESTED = {canonicalize_name(name): version for name, version in TESTED.items()}


def names(requirements):
    return {canonicalize_name(item.name) for item in requirements}


def test_no_version_of_torch_is_too_new():
    """A cap would replace the torch that is installed by an older one."""
    (torch,) = [item for item in CORE if item.name == "torch"]
    assert "99.0" in torch.specifier
    assert TESTED["torch"] in torch.specifier


def test_the_tested_versions_are_allowed():
    tested = [*CORE, *EXTRAS["all"]]
    for extra in EXTRAS["all"][0].extras:
        tested += EXTRAS[extra]
    for item in tested:
        if item.name != "llmdpd_torchrl":
            version = TESTED[canonicalize_name(item.name)]
            assert version in item.specifier, f"{item} does not allow the tested {version}"


def imported(folder):
    """Top-level modules that the files of a folder import, and where."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            found |= {module.partition(".")[0]: path for module in modules}
    return found


@pytest.mark.parametrize("folder", ["llmdpd_torchrl", "examples"])
def test_what_is_imported_is_declared(folder):
    declared = names([*CORE, *(item for items in EXTRAS.values() for item in items)])
    # What these bring for their users to import.
    declared |= {"pydantic-core", "tokenizers"}
    provided = metadata.packages_distributions()
    for module, path in imported(folder).items():
        if module not in sys.stdlib_module_names and module != "llmdpd_torchrl":
            if module in provided:
                distributions = {canonicalize_name(name) for name in provided[module]}
            else:  # of an extra that is not installed
                distributions = {canonicalize_name(module)}
            assert distributions & declared, f"{path} imports {module}, which is not declared"


def test_minari_can_download():
    """Its data sets lie on the Hugging Face Hub, whose client is an extra of its own."""
    (minari,) = EXTRAS["minari"]
    assert "hf" in minari.extras


def test_the_oldest_python_is_the_one_that_is_checked():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert re.search(rf"Python {re.escape(oldest)} or newer", (ROOT / "README.md").read_text())
