"""Imports go downwards only."""

import ast
from pathlib import Path

import llmdpd_torchrl

ROOT = Path(llmdpd_torchrl.__file__).parent
ALLOWED = {
    "data": {"data", "envs"},  # envs: data collection runs the simulator
    "envs": {"envs", "data.tasks"},
    "prompts": {"prompts", "data"},
    "modules": {"modules", "prompts", "data"},
    "transforms": {"transforms", "modules", "prompts", "data"},
    "objectives": {"objectives", "modules"},
    "trainers": {"trainers", "objectives", "modules"},
    "evaluation": {
        "evaluation", "trainers", "transforms", "objectives", "modules", "prompts", "envs", "data",
    },
    "baselines": {
        "baselines", "trainers", "transforms", "objectives", "modules", "prompts", "data",
    },
    "experiments": {
        "experiments", "baselines", "evaluation", "trainers", "transforms", "objectives", "modules",
        "prompts", "envs", "data",
    },
}  # fmt: skip
EVERYWHERE = {"commands", "errors", "files", "memory", "seal", "workers"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmdpd_torchrl."):
            yield node.module.removeprefix("llmdpd_torchrl.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("llmdpd_torchrl."):
                    yield alias.name.removeprefix("llmdpd_torchrl.")


def test_imports_go_downwards_only():
    wrong = []
    for layer, allowed in ALLOWED.items():
        for path in (ROOT / layer).rglob("*.py"):
            for name in imports(path):
                top = name.split(".")[0]
                if top in EVERYWHERE or top in allowed or name in allowed:
                    continue
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_every_package_is_ranked():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ALLOWED)


def test_reading_data_needs_no_simulator():
    import subprocess
    import sys

    code = "import sys, llmdpd_torchrl.data; sys.exit('metaworld' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
