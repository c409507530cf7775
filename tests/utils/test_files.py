import json

import pytest

from llmdpd_torchrl.utils.files import file_sha256, folder_lock, write_atomic, write_json


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


def test_the_lock_is_exclusive(tmp_path):
    from filelock import FileLock, Timeout

    with folder_lock(tmp_path), pytest.raises(Timeout):
        FileLock(tmp_path / ".lock", timeout=0.01).acquire()
