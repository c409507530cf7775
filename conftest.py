"""What the tests and the documentation's examples share: a cache folder of their own."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """The cache of this session, also of the processes that it starts; not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMDPD_CACHE", os.fspath(folder))
        yield folder
