"""Short trainings, and what they leave behind."""

import pytest

from tests.reliability import short_training

UPDATES = 90


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The folder of a training of ``UPDATES`` updates that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    short_training.train(folder, updates=UPDATES, every=10)
    return folder
