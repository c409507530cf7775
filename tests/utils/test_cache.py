"""Where things are kept between runs, and what happens when two processes want to write there."""

import multiprocessing
import os
from pathlib import Path

import pytest

from llmdpd_torchrl.utils.cache import cache_root, locked_folder, used_bytes
from llmdpd_torchrl.utils.errors import ConfigError


def test_the_variable_wins_over_the_platforms_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("LLMDPD_CACHE")
    assert cache_root() == tmp_path / "shared" / "llmdpd_torchrl"
    assert list(tmp_path.iterdir()) == []  # to ask makes nothing


def test_a_relative_folder_or_one_of_the_home_folder_is_the_same_from_everywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMDPD_CACHE", "here")
    assert cache_root() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMDPD_CACHE", "~/there")
    assert cache_root() == tmp_path / "there"


@pytest.mark.parametrize("value", [None, "~/cache"])
def test_without_a_home_folder_the_variable_is_named(monkeypatch, value):
    for name in ("HOME", "XDG_CACHE_HOME", "LLMDPD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv("LLMDPD_CACHE", value)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="set LLMDPD_CACHE to a writable"):
        cache_root()


def test_a_folder_that_cannot_be_made_names_what_to_set(monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", "/dev/null/cache")
    inside = cache_root() / "data"
    with pytest.raises(ConfigError, match="set LLMDPD_CACHE to"), locked_folder(inside, "d", "s"):
        pass
    outside = Path("/dev/null/data")
    with (
        pytest.raises(ConfigError, match=r"set data\.folder"),
        locked_folder(outside, "data", "data.folder"),
    ):
        pass


def test_what_others_remove_meanwhile_is_not_counted(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(bytes(5))
    assert used_bytes(tmp_path) == used_bytes(tmp_path / "folder" / "file") == 5
    there = [*tmp_path.rglob("*"), tmp_path / "renamed"]
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: there)
    assert used_bytes(tmp_path) == 5


def hold(folder, held, release):
    with locked_folder(folder):
        held.set()
        release.wait(60)
        (folder / "made").write_text("")


def test_who_has_to_wait_is_told_and_goes_on_afterwards(tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    said = []

    def note(text):  # the other one ends as soon as we have said that we wait
        said.append(text)
        release.set()

    monkeypatch.setattr("llmdpd_torchrl.utils.cache.notice", note)
    with locked_folder(tmp_path):
        assert (tmp_path / "made").exists()
    process.join()
    assert said == [f"another process is making what {tmp_path} lacks: waiting for it"]
