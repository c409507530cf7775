"""The command line: what it prints, and one line with exit code 2 for a user's mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmdpd_torchrl.commands.prompts import main

PROMPTS = """\
tasks:
  door:
    task: open the door
    robot: robot arm
    objective: open
    constraints: slowly
    success: stop
    paraphrases: [close the window]
"""


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50
    assert lines[0].split(maxsplit=1) == ["assembly-v3", "Put a ring with a handle onto a peg."]
    assert main(["list", "--full"]) == 0
    assert "Success: " in capsys.readouterr().out


def test_embed_a_file_then_find_it_in_the_cache(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.yaml"
    file.write_text(PROMPTS)
    assert main(["embed", str(file), "--encoder", str(tiny_folder)]) == 0
    assert "2 texts of 1 tasks embedded, 16 wide" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "transformers", None)  # the second time needs no model
    assert main(["embed", str(file), "--encoder", str(tiny_folder)]) == 0


def test_nearest(capsys):
    text = "Play football and shoot between the posts."
    assert main(["nearest", text, "--count", "2"]) == 0
    assert "soccer-v3" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nearest", "a b", "--encoder", "smolm2"], "unknown text encoder 'smolm2'"),
        (["nearest", " "], "prompt 0 is empty"),
        (["nearest", "a b", "--count", "0"], "--count must be"),
        (["embed", "absent.yaml"], "absent.yaml"),
        (["embed", "--builtin", "--encoder", "owner/name"], "leave --encoder and --option out"),
        (["nearest", "a b", "--option", "layer"], "write NAME=VALUE"),
        (["nearest", "a b", "--option", "size=3"], "text_encoder.size"),
        (["list", "--file", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.integration
def test_help_as_a_module():
    command = [sys.executable, "-m", "llmdpd_torchrl", "prompts"]
    done = subprocess.run([*command, "embed", "--help"], capture_output=True, text=True, check=True)
    assert "training with them needs no language model" in " ".join(done.stdout.split())
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
