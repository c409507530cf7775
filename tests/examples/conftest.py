"""Examples are run as a person runs them: as commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from llmdpd_torchrl.experiments.run import run_experiment

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def run_example():
    def run(script, folder, *overrides, **environment):
        return subprocess.run(
            [sys.executable, str(EXAMPLES / script), *overrides],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def check_mistake(tmp_path, monkeypatch, capfd):
    """What must end in one clear line, with nothing made: run in this process, which is quicker."""

    def check(config, family, overrides, message):
        monkeypatch.chdir(tmp_path)
        folder = EXAMPLES.parent / "configs"
        folder = folder / "d4rl" if config == "train_d4rl" else folder
        with initialize_config_dir(str(folder), version_base="1.3"):
            cfg = compose(config, ["preset=smoke", "progress=false", *overrides])
        assert run_experiment(cfg, family) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert message in lines[0]
        assert not list(tmp_path.rglob("config.json"))

    return check
