"""Trainings that are killed at random moments end as those that are not."""

import harness
import pytest

FAST = 310  # no multiple of the log interval: averages are in flight when it saves


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    def run(updates):
        folder = tmp_path_factory.mktemp("expected")
        command = [*harness.SHORT_TRAINING, str(folder), "--updates", str(updates)]
        result = harness.kill_until_done(command, kills=0, longest=0)
        assert result.exit_code == 0, result.output
        return folder

    return run


@pytest.mark.parametrize(
    ("kills", "updates", "longest"),
    [(2, FAST, 1.0), pytest.param(20, 3010, 2.0, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(expected, tmp_path, kills, updates, longest):
    command = [*harness.SHORT_TRAINING, str(tmp_path), "--updates", str(updates)]
    result = harness.kill_until_done(command, kills=kills, longest=longest)
    assert result.exit_code == 0, result.output
    assert result.kills == kills
    assert harness.differences(expected(updates), tmp_path) == []


@pytest.mark.slow
def test_a_collection_killed_at_random_moments(tmp_path):
    for name, kills in (("expected", 0), ("killed", 10)):
        command = [*harness.SHORT_COLLECTION, str(tmp_path / name)]
        result = harness.kill_until_done(command, kills=kills, longest=8.0)
        assert result.exit_code == 0, result.output
    assert result.kills >= 3  # it may get to its end before
    assert harness.differing_files(tmp_path / "expected", tmp_path / "killed") == []
