"""What the tests and the documentation's examples share: a cache folder, and what to skip."""

import doctest
import importlib.util
import os
import re

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """The cache of this session, also of the processes that it starts; not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMDPD_CACHE", os.fspath(folder))
        yield folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip an example of the documentation that asks for a package of an extra that is not here.

    Where it is installed, every example has to run.
    """
    try:
        return (yield)
    except doctest.UnexpectedException as error:
        cause = str(error.exc_info[1])
        needed = re.search(r"needs the package (\w+) ", cause)
        if needed and importlib.util.find_spec(needed[1]) is None:
            pytest.skip(cause)
        raise
