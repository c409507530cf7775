import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from llmdpd_torchrl.utils.errors import DamagedError
from llmdpd_torchrl.utils.files import (
    CHECKSUMS,
    file_sha256,
    folder_lock,
    sync,
    verify_checksums,
    write_atomic,
    write_checksums,
    write_folder_atomic,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_obeys_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    write_atomic(tmp_path / "ours", lambda temporary: temporary.write_text("x"))
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_json_is_ordered_and_refuses_what_json_has_not(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    assert (tmp_path / "a.json").read_text().index('"a"') < 20
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5], "b": 1}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == expected


def test_windows_opens_no_folder_and_flushes_only_what_may_be_written(tmp_path, monkeypatch):
    opened, really = [], os.open

    def note(path, flags, *args, **options):
        opened.append((Path(path).name, flags))
        return really(path, flags, *args, **options)

    path = tmp_path / "a.txt"
    path.write_text("a")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(os, "open", note)
    sync(tmp_path)
    sync(path)
    assert opened == [("a.txt", os.O_RDWR)]


def test_the_lock_is_exclusive(tmp_path):
    from filelock import FileLock, Timeout

    with folder_lock(tmp_path), pytest.raises(Timeout):
        FileLock(tmp_path / ".lock", timeout=0.01).acquire()


def test_a_folder_is_replaced_at_once_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "a"
    for text in ("old", "new"):
        write_folder_atomic(folder, lambda part, text=text: write_text(part / "b.txt", text))
        assert (folder / "b.txt").read_text() == text

    def fail(part):
        write_text(part / "b.txt", "half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_folder_atomic(folder, fail)
    assert (folder / "b.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_manifest_is_read_by_sha256sum(tmp_path):
    (tmp_path / "inner").mkdir()
    write_text(tmp_path / "inner" / "a.json", "1")
    write_checksums(tmp_path)
    command = ["sha256sum", "--check", "--strict", CHECKSUMS]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    write_text(tmp_path / "inner" / "a.json", "2")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_text(folder / "inner" / "a.json", "2"), "a.json: damaged"),
        (lambda folder: (folder / "inner" / "a.json").unlink(), "a.json: is missing"),
        (lambda folder: write_text(folder / "b.json", "1"), "b.json: is not listed"),
        (lambda folder: write_text(folder / "b.pickle", "1"), "b.pickle: a file of this kind"),
        (lambda folder: (folder / CHECKSUMS).unlink(), "not completely written"),
        (lambda folder: write_text(folder / CHECKSUMS, ""), "it is not what was written"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path, change, message):
    (tmp_path / "inner").mkdir()
    write_text(tmp_path / "inner" / "a.json", "1")
    write_checksums(tmp_path)
    verify_checksums(tmp_path, [".json"])
    change(tmp_path)
    with pytest.raises(DamagedError, match=message):
        verify_checksums(tmp_path, [".json"])
