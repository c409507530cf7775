"""One line for an error that the user can mend, and its traceback for who asks."""

import argparse
import errno
import os
import sys
from pathlib import Path

import pytest

from llmdpd_torchrl.collection import __main__ as data_main
from llmdpd_torchrl.evaluation import __main__ as evaluation_main
from llmdpd_torchrl.prompts import __main__ as prompts_main
from llmdpd_torchrl.utils.cli import hydra_command, run_command, run_command_line
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import write_json

CONFIG = """
debug: false
number: 1
name: the ${number}
hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: .}}
defaults:
  - _self_
  - size: small
  - override hydra/hydra_logging: disabled
  - override hydra/job_logging: disabled
"""


def fail():
    try:
        raise KeyError("behind it")
    except KeyError:
        raise DataError("the file: damaged; make it anew") from None


def test_an_error_is_one_line_and_a_bug_is_raised(capsys):
    assert run_command(fail) == 2
    assert capsys.readouterr().err == "error: the file: damaged; make it anew\n"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_debug_shows_also_what_was_kept_back(capsys):
    assert run_command(fail, debug=True) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "KeyError: 'behind it'" in text
    assert text.splitlines()[-1] == "error: the file: damaged; make it anew"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "results.json"
    assert run_command(lambda: write_json(path, {}) or 0) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: can not write {path} (No space left on device): make room, then run the same "
        "command again\n"
    )
    assert not list(tmp_path.iterdir())

    def missing():
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):  # ours to look after, or a bug
        run_command(missing)


def parser():
    made = argparse.ArgumentParser()
    made.add_subparsers().add_parser("work").add_argument("folder")
    return made


@pytest.mark.parametrize("given", [["work", "x", "--debug"], ["--debug", "work", "x"],
                                   ["work", "--debug", "x"]])  # fmt: skip
def test_the_flag_stands_anywhere(given, capsys):
    def work(options):
        raise DataError(f"{options.folder}: damaged")

    assert run_command_line(parser(), work, given) == 2
    assert "Traceback" in capsys.readouterr().err
    without = [word for word in given if word != "--debug"]
    assert run_command_line(parser(), work, without) == 2
    assert capsys.readouterr().err == "error: x: damaged\n"


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (data_main, ["show", "nowhere"]),
        (prompts_main, ["list", "--file", "nowhere.yaml"]),
        (evaluation_main, ["report", "nowhere"]),
    ],
)
def test_every_command_line_has_it(module, given, capsys):
    assert module.main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert module.main([*given, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert "--debug" in capsys.readouterr().out


@pytest.fixture
def hydra(tmp_path, monkeypatch):
    """A command under Hydra; returns its exit code."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for size in ("small", "large"):
        (tmp_path / "size").mkdir(exist_ok=True)
        (tmp_path / "size" / f"{size}.yaml").write_text(f"width: {len(size)}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @hydra_command(str(tmp_path), "config")
    def command(cfg):
        if cfg.number > 6:
            raise ConfigError(f"number is {cfg.number}: use at most 6")
        if cfg.number == 6:
            raise ZeroDivisionError
        return cfg.number - 1 if cfg.name else 9

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        return command()

    return call


def test_the_exit_code_is_the_functions(hydra, capsys):
    assert hydra() == 0
    assert hydra("number=4") == 3
    assert hydra("-m", "number=2,5,1") == 4  # a sweep goes on, and the worst counts
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("unheard=1", "Could not override 'unheard'"),
        ("size=huge", "Could not find 'size/huge'"),
        ("size=huge", "large small"),
        ("number", "missing EQUAL"),
        ("name=${unheard}", "'unheard' not found full_key: name"),
        ("number=7", "number is 7: use at most 6"),
    ],
)
def test_what_hydra_finds_wrong_is_one_line(hydra, capsys, given, said):
    assert hydra(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    for debug in ("--debug", "debug=true"):
        assert hydra(given, debug) == 2
        text = capsys.readouterr().err
        assert "Traceback" in text
        assert text.splitlines()[-1] == line
    assert hydra(given) == 2  # nothing of it stays
    assert capsys.readouterr().err.splitlines() == [line]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_bug_keeps_its_traceback_under_hydra(hydra):
    with pytest.raises(ZeroDivisionError):
        hydra("number=6")


def test_hydras_own_options_work(hydra, capsys):
    with pytest.raises(SystemExit) as stopped:
        hydra("--help")
    assert stopped.value.code == 0
    assert "debug: false" in capsys.readouterr().out
    assert hydra("--cfg", "job", "--debug") == 0
    assert "debug: true" in capsys.readouterr().out


def test_both_examples_name_it_in_their_help():
    for path in Path(__file__).parents[1].glob("configs/**/train_*.yaml"):
        text = path.read_text()
        assert "\ndebug: false # " in text
        assert "--debug shows" in text
