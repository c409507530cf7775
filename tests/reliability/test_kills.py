"""Trainings that are killed at random moments end as those that are not."""

import pytest

from tests.reliability import harness, short_training

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    # No multiple of the log interval: averages are in flight when it saves.
    ("kills", "updates", "longest"),
    [(2, 310, 1.0), pytest.param(20, 3010, 2.0, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(tmp_path, kills, updates, longest):
    folder = tmp_path / "killed"
    command = [*harness.SHORT_TRAINING, str(folder), "--updates", str(updates)]
    result = harness.kill_until_done(command, kills=kills, longest=longest, finish=False)
    assert result.exit_code is None, result.output
    assert result.kills == kills
    # The ends are made in this process, which is started already.
    for name in ("killed", "expected"):
        short_training.train(tmp_path / name, updates=updates, every=50)
    assert harness.differences(tmp_path / "expected", folder) == []


@pytest.mark.slow
def test_a_collection_killed_at_random_moments(tmp_path):
    expected, killed = (
        [*harness.SHORT_COLLECTION, str(tmp_path / name)] for name in ("expected", "killed")
    )
    whole = harness.kill_until_done(expected, kills=0, longest=0)
    assert whole.exit_code == 0, whole.output
    result = harness.kill_until_done(killed, kills=10, longest=whole.seconds / 2)
    assert result.exit_code == 0, result.output
    assert result.kills >= 3  # it may get to its end before
    assert harness.differing_files(tmp_path / "expected", tmp_path / "killed") == []


@pytest.mark.slow
def test_the_example_killed_at_random_moments(tmp_path):
    def run(name, **options):
        folder = tmp_path / name
        result = harness.kill_until_done(
            harness.example_command(folder),
            marker=folder / "out" / "environment.json",
            place=lambda: harness.example_stage(folder),
            **options,
        )
        assert result.exit_code == 0, result.output
        return result

    whole = run("expected", kills=0, longest=0)
    result = run("killed", kills=8, longest=whole.seconds / 2)
    assert result.kills >= 2  # it may get to its end before
    assert harness.example_differences(tmp_path / "expected", tmp_path / "killed") == []
