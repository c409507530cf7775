"""What the package offers at its top: eight names, imported when they are first used."""

import subprocess
import sys

import pytest

import llmdpd_torchrl


def test_every_public_name_is_there():
    names = llmdpd_torchrl.__all__
    assert len(names) == 8
    assert set(names) <= set(dir(llmdpd_torchrl))
    for name in names:
        assert getattr(llmdpd_torchrl, name).__name__ == name


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        llmdpd_torchrl.Nothing  # noqa: B018 (the access is what is tested)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, llmdpd_torchrl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
