"""One line for a user error, and its traceback on request."""

import argparse
import errno
import os
import subprocess
import sys

import pytest

from llmdpd_torchrl.commands import data, prompts, report
from llmdpd_torchrl.utils.errors import DataError, IncompleteError, run_command, run_command_line
from llmdpd_torchrl.utils.files import write_json


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


def test_the_exit_code_is_the_errors(capsys):
    def fail():
        raise IncompleteError("one episode is missing")

    assert run_command(fail) == 1
    assert capsys.readouterr().err == "error: one episode is missing\n"


def test_debug_shows_also_suppressed_causes(capsys):
    assert run_command(fail, debug=True) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "KeyError: 'behind it'" in text
    assert text.splitlines()[-1] == "error: the file: damaged; make it anew"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_one_line(capsys, number):
    def fail():
        raise OSError(number, os.strerror(number), "runs/report")

    assert run_command(fail) == 2
    assert capsys.readouterr().err == (
        f"error: no access to runs/report ({os.strerror(number)}): allow it, or choose another "
        "folder\n"
    )


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "results.json"
    assert run_command(lambda: write_json(path, {}) or 0) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: cannot write {path} (No space left on device): make room, then run the same "
        "command again\n"
    )
    assert not list(tmp_path.iterdir())

    def missing():
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):  # ours to look after, or a bug
        run_command(missing)


def test_a_reader_that_has_read_enough_is_no_error():
    code = (
        "import os, sys; from llmdpd_torchrl.utils.errors import run_command\n"
        "def work():\n"
        "    os.close(read)\n"
        "    print('x' * 100_000)\n"
        "read, write = os.pipe(); os.dup2(write, 1)\n"
        "sys.exit(run_command(work))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

    def another_pipe():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command(another_pipe)


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
        (data, ["show", "nowhere"]),
        (prompts, ["list", "--file", "nowhere.yaml"]),
        (report, ["nowhere"]),
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
