"""What the tests and the documentation's examples share: a cache folder, and what to skip."""

import doctest
import importlib.util
import os

import pytest

SIMULATORS = ("metaworld", "mujoco")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """The cache of this session, also of the processes that it starts; not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMDPD_CACHE", os.fspath(folder))
        yield folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip an example of the documentation that asks for a simulator where none is installed.

    Where they are installed, every example has to run.
    """
    try:
        return (yield)
    except doctest.UnexpectedException as error:
        cause = str(error.exc_info[1])
        missing = [name for name in SIMULATORS if importlib.util.find_spec(name) is None]
        if missing and "llmdpd_torchrl[metaworld]" in cause:
            pytest.skip(cause)
        raise
