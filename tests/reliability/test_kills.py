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
