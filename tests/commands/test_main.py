"""The command ``llmdpd``: its list of commands, and help that does not wait for torch."""

import subprocess
import sys

import pytest

from llmdpd_torchrl import __version__
from llmdpd_torchrl.__main__ import COMMANDS, main


def test_help_lists_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert sum(line.strip().startswith(f"{name} ") for line in lines) == 2
    assert max(map(len, lines)) <= 100


def test_version(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"), [("evla", "did you mean eval?"), ("xyz", "use one of train, ")]
)
def test_an_unknown_command_is_one_line(name, says, capsys):
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no command {name!r}")
    assert error.count("\n") == 1
    assert says in error


def test_help_of_every_command_needs_no_torch():
    code = f"""
import sys
from llmdpd_torchrl.__main__ import main
for name in {list(COMMANDS)}:
    try:
        main([name, "--help"])
    except SystemExit as stop:
        assert not stop.code, name
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--demonstration" in done.stdout
