"""Loggers of a training: ``metrics.csv`` always, one of TorchRL's remote loggers beside it."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import imageio.v3 as imageio
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.record.loggers import Logger, MLFlowLogger, WandbLogger, get_logger

from llmdpd_torchrl.trainers.metrics_file import MetricsFile
from llmdpd_torchrl.utils.errors import ConfigError, first_line, notice
from llmdpd_torchrl.utils.files import sync, write_bytes, write_json, write_text

Metrics: TypeAlias = dict[str, Any] | TensorDictBase


class MetricsCSVLogger(Logger):
    """TorchRL logger that writes all scalars of a run into one tidy ``metrics.csv``.

    TorchRL's own ``CSVLogger`` writes one file per scalar. A scalar without a step goes into the
    last row, or into the next one if that has it. Videos become ``videos/NAME_STEP.mp4``,
    hyperparameters ``hparams.json``, and histograms five columns: minimum, quartiles and maximum.
    ``resume_step`` is that of :class:`MetricsFile`; ``load_state_dict`` removes later rows as well.
    """

    experiment: MetricsFile

    def __init__(
        self, exp_name: str, log_dir: str | os.PathLike[str], resume_step: int | None = None
    ) -> None:
        self._resume_step = resume_step
        super().__init__(exp_name, os.fspath(log_dir))

    def _create_experiment(self) -> MetricsFile:
        return MetricsFile(Path(self.log_dir) / "metrics.csv", self._resume_step)

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        """Log one scalar."""
        self.log_metrics({name: value}, step)

    def log_metrics(
        self, metrics: Metrics, step: int | None = None, *, keys_sep: str = "/"
    ) -> dict[str, float]:
        """Log scalars as one row and return them as floats; nested keys are joined."""
        values = _floats(metrics, keys_sep)
        self.experiment.write(self.experiment.next_step(values) if step is None else step, values)
        return values

    def log_video(
        self, name: str, video: torch.Tensor, step: int | None = None, *, fps: float = 20
    ) -> None:
        """Write a video, uint8 [..., T, C, H, W] with C 1 or 3, as MP4.

        Videos of leading dimensions follow one another.
        """
        _write_video(Path(self.log_dir) / "videos" / f"{name}_{step}.mp4", video, fps)

    def log_hparams(self, cfg: DictConfig | dict) -> None:
        """Write the configuration as ``hparams.json``; other objects are written as strings."""
        write_json(Path(self.log_dir) / "hparams.json", _plain(cfg))

    def log_histogram(
        self, name: str, data: Sequence | torch.Tensor, step: int | None = None, **kwargs: Any
    ) -> None:
        """Write minimum, quartiles and maximum; ``bins`` and other keywords do not apply."""
        values = torch.as_tensor(data).detach().flatten().double().cpu().numpy()
        quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        labels = (f"{name}/{label}" for label in ("min", "q25", "median", "q75", "max"))
        self.log_metrics(dict(zip(labels, quantiles, strict=True)), step)

    def __repr__(self) -> str:
        return f"MetricsCSVLogger(exp_name={self.exp_name!r}, log_dir={self.log_dir!r})"

    def _checkpoint_state(self) -> dict[str, Any]:
        sync(self.experiment.path)  # a checkpoint must not outlive the rows before it
        rows = self.experiment.rows
        pending = [(step, dict(rows[step])) for step in sorted(self.experiment.pending)]
        return {"last_step": self.experiment.last_step, "pending": pending}

    def _load_checkpoint_state(self, state_dict: Mapping[str, Any]) -> None:
        self.experiment.truncate(state_dict["last_step"])
        for step, values in state_dict["pending"]:
            self.experiment.write(step, values)
        if self.experiment.last_step != state_dict["last_step"]:
            notice(
                f"{self.experiment.path} has no row of step {state_dict['last_step']}, at which "
                "the checkpoint was written: rows before it are missing"
            )


class LoggerGroup(Logger):
    """Several loggers as one; without any, it logs nothing.

    A logger that raises is reported in one line and left out from then on: a lost connection must
    not end a training. One that cannot show videos or histograms is left out of these alone.

    Attributes:
        failed: members that raised.
    """

    experiment: list[Any]

    def __init__(
        self, loggers: Sequence[Logger], exp_name: str, log_dir: str | os.PathLike[str]
    ) -> None:
        self.loggers = list(loggers)
        self.failed: list[Logger] = []
        self._lacking: list[tuple[Logger, str]] = []
        super().__init__(exp_name, os.fspath(log_dir))

    def _create_experiment(self) -> list[Any]:
        return [logger.experiment for logger in self.loggers]

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        """Log one scalar."""
        self.log_metrics({name: value}, step)

    def log_metrics(
        self, metrics: Metrics, step: int | None = None, *, keys_sep: str = "/"
    ) -> dict[str, float]:
        """Log scalars and return them as floats; nested keys are joined."""
        values = _floats(metrics, keys_sep)
        self._each("log_metrics", values, step)
        return values

    def log_video(
        self, name: str, video: torch.Tensor, step: int | None = None, **kwargs: Any
    ) -> None:
        """Log a video, uint8 [..., T, C, H, W]."""
        self._each("log_video", name, video, step=step, **kwargs)

    def log_hparams(self, cfg: DictConfig | dict) -> None:
        """Log the configuration."""
        self._each("log_hparams", cfg)

    def log_histogram(self, name: str, data: Sequence | torch.Tensor, **kwargs: Any) -> None:
        """Log a histogram, by default of 64 bins."""
        self._each("log_histogram", name, data, **{"bins": 64, **kwargs})

    def flush(self, timeout: float | None = None) -> None:
        """Flush every logger."""
        self._each("flush", timeout)

    def shutdown(self, timeout: float | None = None) -> None:
        """Close every logger."""
        self._each("shutdown", timeout)
        self._service_shutdown = True

    def _each(self, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Call a method of every logger that has not failed; what they return, by their names."""
        returned = {}
        for logger in self.loggers:
            if logger in self.failed or (logger, method) in self._lacking:
                continue
            try:
                returned[self._name(logger)] = getattr(logger, method)(*args, **kwargs)
            except Exception as error:  # of any kind: a network, an account, a disk
                kind, what = type(logger).__name__.strip("_"), "it"
                if method in ("log_video", "log_histogram"):
                    self._lacking.append((logger, method))
                    what = f"its {method.removeprefix('log_')}s"
                else:
                    self.failed.append(logger)
                reason = f"{type(error).__name__}: {first_line(error)}"
                notice(f"{kind} failed ({reason}): continuing without {what}")
        return returned

    def __repr__(self) -> str:
        return f"LoggerGroup({self.loggers!r})"

    def _checkpoint_state(self) -> dict[str, Any]:
        return {"loggers": self._each("state_dict")}

    def _load_checkpoint_state(self, state_dict: Mapping[str, Any]) -> None:
        # A logger that had failed, or was added, has no state.
        for logger in self.loggers:
            if self._name(logger) in state_dict["loggers"]:
                logger.load_state_dict(state_dict["loggers"][self._name(logger)])

    def _name(self, logger: Logger) -> str:
        return f"{self.loggers.index(logger)} {type(logger).__name__}"


class _Wandb(WandbLogger):
    """TorchRL's logger, without moviepy for videos."""

    def log_video(
        self, name: str, video: torch.Tensor, step: int | None = None, fps: float = 20
    ) -> None:
        import wandb

        path = Path(self.log_dir) / "wandb" / "videos" / f"{name}_{step}.mp4"
        _write_video(path, video, fps)
        self._log_payload({name: wandb.Video(str(path), format="mp4")}, step=step)


class _MLFlow(MLFlowLogger):
    """TorchRL's logger with an end, so that the next run of a sweep can start in its own store."""

    has_own_store = False

    def shutdown(self, timeout: float | None = None) -> None:
        import mlflow

        super().shutdown(timeout)
        mlflow.end_run()
        if self.has_own_store:  # which MLflow has put into the environment
            mlflow.set_tracking_uri(None)


def check_logger(kind: str, wandb_mode: str | None = None) -> None:
    """Check the settings of :func:`make_logger` before any work.

    Raises:
        ConfigError: if ``kind`` or ``wandb_mode`` is unknown, or a package is missing.
    """
    remote = ("wandb", "tensorboard", "trackio", "mlflow")
    if kind not in ("csv", "none", *remote):
        raise ConfigError(f"logger.kind is {kind!r}: choose csv, {', '.join(remote)} or none")
    if wandb_mode not in (None, "online", "offline", "disabled"):
        raise ConfigError(
            f"logger.wandb_mode is {wandb_mode!r}: choose online, offline or disabled"
        )
    if kind in remote and importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f'logger.kind is {kind!r}: it needs its package, pip install "llmdpd_torchrl[{kind}]"'
        )


def make_logger(
    kind: str,
    directory: str | os.PathLike[str],
    *,
    name: str,
    config: dict[str, Any],
    wandb_mode: Literal["online", "offline", "disabled"] | None = None,
    wandb_project: str | None = None,
    resume_step: int | None = None,
) -> Logger:
    """Make the logger of a run.

    Args:
        kind: "csv" (``directory/metrics.csv``); "wandb", "tensorboard", "trackio" or "mlflow" (the
            same, and TorchRL's logger of that kind beside it); or "none".
        directory: folder of the run.
        name: name of the run.
        config: the resolved configuration, logged as hyperparameters.
        wandb_mode: "online" needs ``wandb login``; "offline" writes below ``directory`` for a later
            ``wandb sync``; "disabled" turns wandb off. Default: the variable ``WANDB_MODE``, or
            "online".
        wandb_project: of wandb and trackio. Default: the variable ``WANDB_PROJECT``, or
            "llmdpd_torchrl".
        resume_step: last finished update of the run to continue, ``None`` for a new run.

    Raises:
        ConfigError: see :func:`check_logger`; also if its service cannot start, or ``directory``
            holds the metrics of another run.
    """
    check_logger(kind, wandb_mode)  # before the CSV file exists, so that a second try can make it
    if kind == "none":
        return LoggerGroup([], name, directory)
    table = MetricsCSVLogger(name, directory, resume_step)
    table.log_hparams(config)
    if kind == "csv":
        return table
    project = wandb_project or os.environ.get("WANDB_PROJECT") or "llmdpd_torchrl"
    folder = Path(directory)
    id_file = folder / f"{kind}_id.txt"  # of the service's run, which a resumed training continues
    continues = resume_step is not None and id_file.exists()
    run_id = id_file.read_text().strip() if continues else None
    try:
        if kind == "wandb":
            beside = _start_wandb(folder, name, project, run_id, wandb_mode)
        elif kind == "mlflow":
            beside = _start_mlflow(folder, name, project, run_id)
        else:  # trackio and tensorboard continue a run by its name
            options = {"project": project, "resume": "allow" if run_id else "never"}
            beside = get_logger(kind, str(folder / kind), name, trackio_kwargs=options)
        if run_id is None:
            write_text(id_file, f"{_run_id(beside)}\n")
            is_nested = kind in ("wandb", "trackio")
            beside.log_hparams(_plain(config) if is_nested else _flat(_plain(config)))
    except Exception as error:  # of any kind: no login, no network, a locked database
        hint = "run `wandb login`, set the wandb mode to offline, or " if kind == "wandb" else ""
        raise ConfigError(
            f"{kind} cannot start ({first_line(error)}): {hint}use logger=csv"
        ) from error
    return LoggerGroup([table, beside], name, directory)


def _start_wandb(
    folder: Path, name: str, project: str, run_id: str | None, mode: str | None
) -> _Wandb:
    mode = mode or os.environ.get("WANDB_MODE")
    return _Wandb(
        name,
        save_dir=folder,
        id=run_id,
        project=project,
        log_env_packages=False,  # the run's environment report has them
        **({"mode": mode} if mode else {}),
    )


def _start_mlflow(folder: Path, name: str, project: str, run_id: str | None) -> _MLFlow:
    """In the database that ``MLFLOW_TRACKING_URI`` names, or one in the run's folder.

    TorchRL's ``get_logger`` asks for a folder of files, which MLflow no longer writes.
    """
    import mlflow

    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        store = (folder / "mlflow").resolve()
        store.mkdir(exist_ok=True)
        uri, artifacts = f"sqlite:///{store / 'mlflow.db'}", store.as_uri()
    if run_id is not None:
        os.environ["MLFLOW_RUN_ID"] = run_id  # read by the next start, which removes it
    logger = _MLFlow(project, uri, artifact_location=artifacts)
    logger.has_own_store = artifacts is not None
    mlflow.set_tag("mlflow.runName", name)
    return logger


def _run_id(logger: Logger) -> str:
    if isinstance(logger, _Wandb):
        return logger.experiment.id
    return logger.experiment.info.run_id if isinstance(logger, _MLFlow) else logger.exp_name


def _floats(metrics: Metrics, keys_sep: str = "/") -> dict[str, float]:
    if isinstance(metrics, TensorDictBase):
        metrics = metrics.flatten_keys(keys_sep).to_dict()
    return {name: float(value) for name, value in metrics.items()}


def _plain(cfg: Any) -> Any:
    """A configuration in JSON's types: dictionaries, lists, numbers, strings."""
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, Mapping):
        return {str(key): _plain(value) for key, value in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [_plain(value) for value in cfg]
    if cfg is None or isinstance(cfg, bool | int | str):
        return cfg
    return cfg if isinstance(cfg, float) and math.isfinite(cfg) else str(cfg)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration without nesting, ``{"loss.gamma": 0.99}``; other values become JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            is_scalar = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if is_scalar else json.dumps(value)
    return flat


def _write_video(path: Path, video: torch.Tensor, fps: float) -> None:
    if video.dtype != torch.uint8 or video.ndim < 4 or video.shape[-3] not in {1, 3}:
        raise ValueError(
            f"a video is uint8 [..., T, C, H, W] with 1 or 3 channels, "
            f"not {video.dtype} {tuple(video.shape)}"
        )
    frames = video.flatten(0, -4).permute(0, 2, 3, 1).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = frames.expand(*frames.shape[:-1], 3)
    write_mp4(path, frames.numpy(), fps)


def write_mp4(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 frames [H, W, 3] as H.264 in yuv420p, atomically; every browser plays it.

    The last row and column of odd sizes are repeated, because yuv420p needs even ones. Raises an
    OSError if the file cannot be written, a ValueError if there is no frame.
    """
    content = io.BytesIO()  # in memory: a full disk is then an error of Python's own write
    with imageio.imopen(content, "w", plugin="pyav", extension=".mp4") as file:
        file.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")
        count = 0
        for count, frame in enumerate(frames, 1):  # noqa: B007 (used below)
            even = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
            file.write_frame(np.pad(frame, even, mode="edge"))
    if not count:
        raise ValueError(f"{path}: a video needs at least one frame")
    write_bytes(path, content.getvalue())
