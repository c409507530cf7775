"""Sweeps: their summary, whatever process the jobs ran in, and a sweeper of Optuna's."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from llmdpd_torchrl.experiments.command import config_folder, hydra_command
from llmdpd_torchrl.experiments.run import write_environment
from llmdpd_torchrl.experiments.sweep import share_cores
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.processes import available_cores

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


def test_the_best_of_an_earlier_sweep_is_not_printed(sweep, capsys):
    Path("sweep").mkdir()
    Path("sweep/optimization_results.yaml").write_text("best_params: {a: 1}\nbest_value: 9.0\n")
    assert sweep("loss.lmbda=1") == 0
    assert "best:" not in capsys.readouterr().out


def test_sweeps_that_start_together_have_folders_of_their_own():
    folders = set()
    for _ in range(2):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train_d4rl", return_hydra_config=True)
        folders.add(cfg.hydra.sweep.dir)
    assert len(folders) == 2


def test_optuna_says_what_is_wrong_beside_an_interval_and_what_failed(sweep, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    tune = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=2")
    assert sweep(*tune, "optim.lr=1", "loss.lmbda=interval(0,1)") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "optim.lr" in line
    assert sweep(*tune, "loss.lmbda=interval(6,6.5)") == 2
    assert capsys.readouterr().err == "error: no trial of the sweep has a result\n"


def test_a_bug_in_a_trial_is_shown_and_the_command_fails(tmp_path, sweep, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    @hydra_command("config", folder=tmp_path)
    def command(cfg):
        if cfg.loss.lmbda == 1:
            raise json.JSONDecodeError("Expecting value", "", 0)
        return 1.0

    fixed = ("optim.learning_rate=1", "network.trajectory_dropout=0", "loss.lmbda=choice(0,1)")
    assert command(["-m", "hydra/sweeper=tune", "hydra.sweeper.n_trials=8", *fixed]) == 1
    done = capsys.readouterr()
    assert "Traceback" in done.err
    assert ": JSONDecodeError: Expecting value" in done.out
    assert "best: 1.0000 with loss.lmbda=0" in done.out


@pytest.fixture
def cores(tmp_path, sweep):
    """A sweep whose objective is the number of a job's workers."""
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text + "evaluation: {workers: null}\ndata: {}\n")

    @hydra_command("config", folder=tmp_path)
    def command(cfg):
        share_cores(cfg)
        return float(cfg.evaluation.workers or 0)

    def call(*arguments):
        # absolute: joblib's processes are kept, with the working folder of an earlier test
        folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
        assert command(["-m", "loss.lmbda=1,2", folder, *arguments]) == 0
        notes = [json.loads(path.read_text()) for path in Path("sweep").glob("job-*.json")]
        (found,) = {note["objective"] for note in notes}
        return found

    return call


@pytest.mark.integration
@pytest.mark.parametrize(
    ("plugin", "given", "part"),
    [
        ("joblib", ["hydra/launcher=laptop"], 1),
        ("joblib", ["hydra/launcher=laptop", "hydra.launcher.n_jobs=2"], available_cores() // 2),
        ("submitit", ["hydra/launcher=submitit_local"], 1),
        ("submitit", ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=2"], 2),
    ],
)
def test_jobs_at_once_share_the_cores(cores, plugin, given, part):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    assert cores(*given) == min(max(1, part), available_cores())


def test_jobs_one_after_another_have_all_cores(cores):
    assert cores() == available_cores()


def test_a_job_that_starts_again_with_other_cores_is_the_same(tmp_path, sweep):
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        f"{text}seed: 0\nevaluation: {{workers: null}}\ndata: {{workers: null}}\n"
    )

    @hydra_command("config", folder=tmp_path)
    def command(cfg):
        write_environment(SimpleNamespace(cfg=cfg, output=tmp_path / "out", device="cpu"))
        return 0.0

    (tmp_path / "out").mkdir()
    given = ["-m", "output_dir=out", "changes=none"]
    assert command([*given, "evaluation.workers=2", "data.workers=4"]) == 0
    assert command([*given, "evaluation.workers=3"]) == 0
    assert command([*given, "evaluation.workers=3", "seed=1"]) == 2  # another run
