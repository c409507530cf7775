"""Imports go down only: between packages, and between the files of one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmdpd_torchrl

ROOT = Path(llmdpd_torchrl.__file__).parent
ORDER = (
    "utils", "tasks", "data", "envs", "collection", "prompts", "transforms", "modules",
    "objectives", "trainers", "policies", "evaluation", "baselines", "experiments", "commands",
)  # fmt: skip
"""Each package may import itself and those before it, except where ``MAY_NOT`` says less."""
MAY_NOT = {"envs": {"data"}, "objectives": {"transforms", "modules"}}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports(name):
    """The package's files that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & FILES.keys()) - {name}


def package(name):
    return name.split(".")[1] if "." in name else ""


def test_every_package_is_ranked():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ORDER)
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py"}


def test_packages_import_downwards_only():
    wrong = []
    for name in FILES:
        for other in imports(name):
            here, there = package(name), package(other)
            if here == there or "" in (here, there):
                continue
            if ORDER.index(there) > ORDER.index(here) or there in MAY_NOT.get(here, ()):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_circle_of_files():
    """Everything can be put into an order in which each file comes after what it imports."""
    # A package's face re-exports its files: through it, one file does not know another.
    is_face = {name for name, path in FILES.items() if path.name == "__init__.py"}
    rest = {name: imports(name) - is_face for name in FILES.keys() - is_face}
    while free := {name for name, others in rest.items() if not others & rest.keys()}:
        rest = {name: others for name, others in rest.items() if name not in free}
    assert not rest, "these import each other: " + ", ".join(sorted(rest))


@pytest.mark.parametrize(
    ("module", "unneeded"), [("data", "metaworld"), ("tasks", "torch"), ("tasks", "metaworld")]
)
def test_reading_data_and_names_needs_little(module, unneeded):
    code = f"import sys, llmdpd_torchrl.{module}; sys.exit({unneeded!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
