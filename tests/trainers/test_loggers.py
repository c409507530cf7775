"""The logger of rows, fan-out, and Weights & Biases really run without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.record.loggers.common import Logger

from llmdpd_torchrl.trainers.loggers import LoggerGroup, MetricsCSVLogger, make_logger
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import ConfigError

has_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)


@pytest.fixture
def _quiet_wandb(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home" / variable))
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)


# --- the logger ------------------------------------------------------------------------------


@pytest.fixture
def logger(tmp_path) -> MetricsCSVLogger:
    return MetricsCSVLogger("run", tmp_path)


def test_scalars_of_one_step_share_a_row(logger, tmp_path):
    logger.log_scalar("loss", torch.tensor(0.5), step=10)
    logger.log_scalar("q", 1, step=10)
    logged = logger.log_metrics(TensorDict({"grad": {"norm": torch.tensor([2.0])}}), step=10)
    assert logged == {"grad/norm": 2.0}
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,q,grad/norm\n10,0.5,1.0,2.0\n"


def test_scalars_without_a_step_count_for_themselves(logger, tmp_path):
    for value in range(3):
        logger.log_scalar("a", value)
        logger.log_scalar("b", 10 * value)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n0,0.0,0.0\n1,1.0,10.0\n2,2.0,20.0\n"
    resumed = MetricsCSVLogger("run", tmp_path, resume_step=1)
    resumed.log_scalar("a", 9)
    assert (tmp_path / "metrics.csv").read_text().endswith("1,1.0,10.0\n2,9.0,\n")


def test_checkpointed_state_forgets_later_rows(logger, tmp_path):
    logger.log_scalar("a", 1.0, step=1)
    state = logger.state_dict()
    logger.log_scalar("a", 2.0, step=2)
    logger.load_state_dict(state)
    assert logger.experiment.last_step == 1
    logger.log_scalar("a", 5.0)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n1,1.0\n2,5.0\n"


def test_what_no_csv_holds_goes_beside_it(logger, tmp_path):
    logger.log_hparams(OmegaConf.create({"loss": {"gamma": 0.99}, "twice": "${loss.gamma}"}))
    assert json.loads((tmp_path / "hparams.json").read_text()) == {
        "loss": {"gamma": 0.99},
        "twice": 0.99,
    }
    logger.log_hparams({"path": tmp_path, "limit": float("inf"), "seeds": (1, 2)})
    assert json.loads((tmp_path / "hparams.json").read_text()) == {
        "path": str(tmp_path),
        "limit": "inf",
        "seeds": [1, 2],
    }
    logger.log_histogram("weights", torch.arange(5.0), step=3)
    _, columns = read_metrics(tmp_path / "metrics.csv")
    assert {name: values.item() for name, values in columns.items()} == {
        "weights/min": 0.0,
        "weights/q25": 1.0,
        "weights/median": 2.0,
        "weights/q75": 3.0,
        "weights/max": 4.0,
    }
    assert "run" in repr(logger)


@pytest.mark.parametrize("shape", [(6, 3, 33, 47), (2, 3, 1, 32, 48)])
def test_video_tensors_become_mp4(logger, tmp_path, shape):
    video = torch.full(shape, 100, dtype=torch.uint8)
    logger.log_video("eval/reach", video, step=4, fps=10)
    frames = imageio.imread(tmp_path / "videos" / "eval" / "reach_4.mp4", plugin="pyav")
    assert len(frames) == 6
    assert frames[0].shape in {(34, 48, 3), (32, 48, 3)}
    assert np.asarray(frames[3]).mean() == pytest.approx(100, abs=3)


@pytest.mark.parametrize("video", [torch.zeros(6, 3, 8, 8), torch.zeros(6, 8, 8, 3).byte()])
def test_tensors_that_are_no_video_are_refused(logger, video):
    with pytest.raises(ValueError, match="uint8"):
        logger.log_video("reach", video)


def test_a_film_without_frames_is_refused_and_leaves_no_file(logger, tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        logger.log_video("reach", torch.zeros(0, 3, 8, 8).byte())
    assert not list((tmp_path / "videos").iterdir())


def test_group_passes_everything_to_all(tmp_path):
    members = [MetricsCSVLogger(name, tmp_path / name) for name in ("a", "b")]
    group = LoggerGroup(members, "run", tmp_path)
    group.log_scalar("loss", torch.tensor(1.0), step=1)
    assert group.log_metrics({"q": torch.tensor(2.0)}, step=1) == {"q": 2.0}
    group.log_hparams({"x": 1})
    group.log_histogram("w", [1.0, 2.0], step=1)
    group.log_video("film", torch.zeros(2, 3, 16, 16).byte(), step=1)
    state = group.state_dict()
    group.log_scalar("loss", 2.0, step=2)
    group.load_state_dict(state)
    group.shutdown()
    assert not group.is_alive
    for name in ("a", "b"):
        steps, columns = read_metrics(tmp_path / name / "metrics.csv")
        assert steps.tolist() == [1]
        assert (columns["loss"].item(), columns["q"].item()) == (1.0, 2.0)
        assert (tmp_path / name / "hparams.json").exists()
        assert (tmp_path / name / "videos" / "film_1.mp4").exists()


class Silent(MetricsCSVLogger):
    """A logger that cannot show videos."""

    def log_video(self, *args, **kwargs):
        raise ImportError("no encoder")


def test_a_logger_without_videos_keeps_its_curves(tmp_path, capsys):
    member = Silent("run", tmp_path)
    group = LoggerGroup([member], "run", tmp_path)
    for step in (1, 2):
        group.log_video("film", torch.zeros(2, 3, 16, 16).byte(), step=step)
        group.log_scalar("loss", 1.0, step=step)
    assert not group.failed
    assert read_metrics(tmp_path / "metrics.csv")[0].tolist() == [1, 2]
    notes = capsys.readouterr().err.splitlines()
    assert notes == ["note: Silent failed (ImportError: no encoder): continuing without its videos"]


# --- make_logger -----------------------------------------------------------------------------


def test_csv_is_a_torchrl_logger_with_the_configuration(tmp_path):
    logger = make_logger("csv", tmp_path, name="run", config={"seed": 1})
    assert isinstance(logger, Logger)
    logger.log_scalar("loss", 1.0, step=0)
    assert json.loads((tmp_path / "hparams.json").read_text()) == {"seed": 1}
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n0,1.0\n"


def test_none_writes_nothing(tmp_path):
    logger = make_logger("none", tmp_path, name="run", config={})
    assert isinstance(logger, Logger)
    assert logger.log_metrics({"loss": 1.0}, step=0) == {"loss": 1.0}
    logger.log_video("film", torch.zeros(2, 3, 16, 16).byte())
    logger.log_hparams({"x": 1})
    logger.shutdown()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "mode", "message"),
    [
        ("comet", "online", "csv, wandb, tensorboard, trackio, mlflow or none"),
        ("wandb", "dryrun", "online, offline or"),
    ],
)
def test_unknown_settings_are_named(tmp_path, kind, mode, message):
    with pytest.raises(ConfigError, match=message):
        make_logger(kind, tmp_path, name="run", config={}, wandb_mode=mode)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["wandb", "tensorboard", "trackio", "mlflow"])
def test_without_the_package_the_line_names_it(tmp_path, monkeypatch, kind):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == kind else find_spec(name)
    )
    with pytest.raises(
        ConfigError, match=rf"logger.kind is .{kind}.: .* pip install .llmdpd_torchrl.{kind}"
    ):
        make_logger(kind, tmp_path, name="run", config={})
    assert not list(tmp_path.iterdir())


def test_tensorboard_beside_the_csv(tmp_path):
    pytest.importorskip("tensorboard")
    config = {"seed": 1, "optim": {"learning_rate": 1e-3, "widths": [8, 8], "limit": None}}
    logger = make_logger("tensorboard", tmp_path, name="run", config=config)
    logger.log_scalar("loss", 1.0, step=0)
    logger.log_histogram("weights", torch.arange(5.0), step=0)
    logger.flush()
    assert not logger.failed
    state = logger.state_dict()
    logger.load_state_dict(state)
    logger.shutdown()
    assert read_metrics(tmp_path / "metrics.csv")[0].tolist() == [0]
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))


@has_wandb
@pytest.mark.usefixtures("_quiet_wandb")
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_runs_without_a_network_and_the_csv_is_written(tmp_path, mode):
    directory = tmp_path / "run"
    logger = make_logger("wandb", directory, name="run", config={"seed": 1}, wandb_mode=mode)
    logger.log_scalar("loss", 1.0, step=0)
    logger.log_metrics({"loss": torch.tensor(0.5), "q": 2.0}, step=1)
    logger.log_histogram("weights", torch.arange(5.0), step=1)
    logger.log_video("film", torch.zeros(2, 3, 16, 16).byte(), step=1)
    logger.shutdown()
    steps, columns = read_metrics(directory / "metrics.csv")
    assert steps.tolist() == [0, 1]
    assert columns["loss"].tolist() == [1.0, 0.5]
    offline_runs = list((directory / "wandb").glob("offline-run-*/*.wandb"))
    assert len(offline_runs) == (mode == "offline")


@has_wandb
@pytest.mark.usefixtures("_quiet_wandb")
def test_the_environments_wandb_mode_and_project_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    logger = make_logger("wandb", tmp_path / "run", name="run", config={})
    assert logger.loggers[1].experiment.settings.mode == "offline"
    assert logger.loggers[1].experiment.project == "mine"
    logger.shutdown()


@has_wandb
@pytest.mark.usefixtures("_quiet_wandb")
def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path):
    settings = {"name": "run", "config": {}, "wandb_mode": "offline"}
    first = make_logger("wandb", tmp_path / "run", **settings)
    first.log_scalar("loss", 1.0, step=0)
    name = first.loggers[1].experiment.id
    first.shutdown()
    second = make_logger("wandb", tmp_path / "run", resume_step=0, **settings)
    assert second.loggers[1].experiment.id == name
    second.shutdown()


@has_wandb
@pytest.mark.usefixtures("_quiet_wandb")
def test_the_next_run_of_a_sweep_is_another_wandb_run(tmp_path):
    ids = []
    for name in ("a", "b"):
        logger = make_logger("wandb", tmp_path / name, name=name, config={}, wandb_mode="offline")
        ids.append(logger.loggers[1].experiment.id)
        logger.shutdown()
    assert ids[0] != ids[1]


def test_mlflow_gets_curves_and_configuration_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = {"optim": {"learning_rate": 0.5}}
    for name, resume_step, step in (("a", None, 0), ("a", 0, 1), ("b", None, 0)):
        folder = tmp_path / name
        logger = make_logger("mlflow", folder, name=name, config=config, resume_step=resume_step)
        logger.log_scalar("loss", 1.0, step=step)
        logger.log_video("film", torch.zeros(2, 3, 16, 16).byte(), step=step)
        logger.shutdown()
        assert not logger.failed
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'a' / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'llmdpd_torchrl'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "a"
    assert run.data.params == {"optim.learning_rate": "0.5"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [0, 1]


def test_trackio_goes_on_in_the_same_run_and_starts_others_anew(tmp_path):
    """In a process of its own: trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    code = """
import sys
from llmdpd_torchrl.trainers.loggers import make_logger
for resume_step in (None, 0, None):
    if resume_step is None:
        (Path("run/metrics.csv")).unlink(missing_ok=True)
    logger = make_logger("trackio", "run", name="run", config={}, resume_step=resume_step)
    print("id", logger.loggers[1].experiment.id)
    logger.log_scalar("loss", 1.0, step=0)
    logger.shutdown()
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", "from pathlib import Path" + code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, resumed, new = [line for line in done.stdout.splitlines() if line.startswith("id ")]
    assert first == resumed != new


@has_wandb
@pytest.mark.usefixtures("_quiet_wandb")
def test_wandb_online_without_a_login_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="wandb login") as error:
        make_logger("wandb", tmp_path / "run", name="run", config={})
    assert "\n" not in str(error.value)
