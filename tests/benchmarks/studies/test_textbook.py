"""Both sides of the comparison with the textbook train, are evaluated alike, and are stored."""

import json

import numpy as np
import pytest

from benchmarks.studies import textbook
from benchmarks.studies.options import run_command
from llmdpd_torchrl.data import OfflineDataset, Recording, export_d4rl


@pytest.fixture
def options(tmp_path):
    generator = np.random.default_rng(0)
    observation = generator.normal(size=(61, 11))
    recording = Recording(
        name="hopper", source="hopper", observation=observation[:-1],
        next_observation=observation[1:], action=generator.uniform(-1, 1, (60, 3)),
        reward=np.ones(60), terminated=np.zeros(60), truncated=np.arange(60) % 15 == 14,
    )  # fmt: skip
    dataset = OfflineDataset.from_recordings([recording])
    export_d4rl(dataset, tmp_path / "hopper_medium.hdf5")
    return textbook.Options(
        data=str(tmp_path), file="hopper_medium", updates=4, every=2, seeds=(0,), width=8,
        episodes=2, store=str(tmp_path / "store"),
    )  # fmt: skip


@pytest.mark.integration
def test_both_sides_run_and_are_stored(options, capsys):
    textbook.run(options)
    paths = [textbook.run_one(side, 0, options) for side in textbook.SIDES]
    assert capsys.readouterr().out.count("stored") == 2
    for path in paths:
        run = json.loads(path.read_text())
        assert [place["updates"] for place in run["curve"]] == [2, 4]
        assert all(len(place["scores"]) == 2 for place in run["curve"])
    found = textbook.figures(paths)
    assert set(found) == {
        f"hopper_medium_{side}_{end}" for side in textbook.SIDES for end in ("seed0", 2, 4)
    }


def test_mistakes_are_one_line(options, capsys):
    settings = [f"data={options.data}", "file=hopper_medium", "sides=[notebook]"]
    assert run_command(textbook.run, textbook.Options, settings) == 2
    assert "sides has 'notebook': use some of textbook, library" in capsys.readouterr().err
    assert run_command(textbook.run, textbook.Options, ["data=nowhere"]) == 2
    assert "in which halfcheetah_medium_replay.hdf5 is" in capsys.readouterr().err
