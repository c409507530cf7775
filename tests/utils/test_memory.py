"""The memory that is available, within the limits of a container, and what does not fit."""

import psutil
import pytest

from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.memory import available_memory, check_memory


def write(root, name, text):
    (root / name).write_text(text)


@pytest.fixture
def machine(monkeypatch):
    """A machine with 2 MB to spare."""
    memory = psutil.virtual_memory()._replace(available=2000 * 1024)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_the_least_that_is_left_counts(tmp_path, machine):
    assert available_memory(tmp_path) == 2000 * 1024
    write(tmp_path, "memory.max", "max\n")
    write(tmp_path, "memory.current", "5000\n")
    assert available_memory(tmp_path) == 2000 * 1024
    write(tmp_path, "memory.max", "7000\n")
    assert available_memory(tmp_path) == 2000
    write(tmp_path, "memory.max", "4000\n")
    assert available_memory(tmp_path) == 0


def test_pages_of_files_are_freed(tmp_path, machine):
    write(tmp_path, "memory.max", "7000\n")
    write(tmp_path, "memory.current", "6000\n")
    stat = "anon 1500\ninactive_file 3000\nactive_file 500\n"
    write(tmp_path, "memory.stat", stat)
    assert available_memory(tmp_path) == 4500


def test_what_does_not_fit_is_refused_in_one_line():
    check_memory(10, "it", available=10)
    with pytest.raises(ConfigError, match=r"^it needs about 2\.0 GiB of memory, 1\.5 GiB"):
        check_memory(2 * 2**30, "it", available=3 * 2**29)
    with pytest.raises(ConfigError, match="the moon"):
        check_memory(2**60, "the moon")
