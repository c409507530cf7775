"""Sweeps: their summary, whatever process the jobs ran in, and a sweeper of Optuna's."""

import json
import shutil
from pathlib import Path

import pytest

from llmdpd_torchrl.experiments.command import config_folder, hydra_command
from llmdpd_torchrl.utils.errors import ConfigError

CONFIG = """
defaults: [_self_, override hydra/hydra_logging: disabled, override hydra/job_logging: disabled]
debug: false
changes: ''
output_dir: out${changes}
optim: {learning_rate: 1.0}
loss: {lmbda: 0.0}
network: {trajectory_dropout: 0.0}
hydra:
  output_subdir: null
  run: {dir: .}
  sweep: {dir: sweep, subdir: .}
  callbacks: {summary: {_target_: llmdpd_torchrl.experiments.sweep.SweepSummary}}
  job: {config: {override_dirname: {kv_sep: _, item_sep: '-'}}}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A command whose objective is minus lambda, and which refuses a lambda of 7."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    shutil.copytree(config_folder() / "hydra", tmp_path / "hydra")
    monkeypatch.chdir(tmp_path)

    @hydra_command("config", folder=tmp_path)
    def command(cfg):
        if cfg.loss.lmbda == 7:
            raise ConfigError("loss.lmbda is 7: it must be another")
        return -float(cfg.loss.lmbda) if cfg.loss.lmbda < 5 else float("nan")

    return lambda *arguments: command(["-m", *arguments])


def test_a_line_for_every_job_at_the_end(sweep, capsys):
    assert sweep("loss.lmbda=1,2,6,7") == 2
    done = capsys.readouterr()
    assert done.out.splitlines() == [
        "sweep of 4 runs, 1 of them failed:",
        "  -1.0000 out-loss.lmbda_1",
        "  -2.0000 out-loss.lmbda_2",
        "  -       out-loss.lmbda_6",
        "  failed  out-loss.lmbda_7: loss.lmbda is 7: it must be another",
    ]
    assert done.err == "error: loss.lmbda is 7: it must be another\n"
    assert json.loads(Path("sweep/job-1.json").read_text())["objective"] == -2.0
    assert sweep("loss.lmbda=1") == 0  # what an earlier sweep left in the folder is no part of it
    assert capsys.readouterr().out.startswith("sweep of 1 runs:")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("launcher", "plugin"), [("laptop", "joblib"), ("submitit_local", "submitit")]
)
def test_jobs_in_other_processes_are_part_of_the_summary(sweep, capsys, launcher, plugin):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    assert sweep(f"hydra/launcher={launcher}", "loss.lmbda=7,1") == 2
    out = capsys.readouterr().out
    assert "failed  out-loss.lmbda_7: loss.lmbda is 7" in out
    assert "-1.0000 out-loss.lmbda_1" in out


def test_optuna_ends_with_the_best_value_and_settings(sweep, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    arguments = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=6", "optim.learning_rate=0.5")
    assert sweep(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    assert len(values) == len(set(values)) == 6
    assert lines[-1].startswith(f"best: {max(values):.4f} with loss.lmbda=")
    assert "network.trajectory_dropout=" in lines[-1]
    assert "sweep/optimization_results.yaml" in lines[-1]
    assert sweep(*arguments) == 0
    assert capsys.readouterr().out.splitlines() == lines  # seeded


def test_optuna_goes_on_after_failed_trials(sweep, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    fixed = ("optim.learning_rate=1", "network.trajectory_dropout=0", "loss.lmbda=choice(6,7,1)")
    assert sweep("hydra/sweeper=tune", "hydra.sweeper.n_trials=8", *fixed) == 2
    done = capsys.readouterr()
    assert "  failed  out-loss.lmbda_7" in done.out
    assert "best: -1.0000 with loss.lmbda=1" in done.out
    assert sweep("hydra/sweeper=tune", "hydra.sweeper.n_trials=2", *fixed[:2], "loss.lmbda=7") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: no trial of the sweep has a result"
