"""Loggers of a run: one ``metrics.csv`` always, Weights & Biases beside it when asked for."""

from __future__ import annotations

import importlib.util
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as imageio
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.record.loggers.common import Logger
from torchrl.record.loggers.wandb import WandbLogger

from llmdpd_torchrl.trainers.logger_group import LoggerGroup, as_floats
from llmdpd_torchrl.trainers.metrics_file import MetricsFile, read_metrics
from llmdpd_torchrl.utils.errors import ConfigError, first_line, notice
from llmdpd_torchrl.utils.files import sync, write_atomic, write_json

__all__ = ["MetricsCSVLogger", "make_logger", "write_mp4"]


class MetricsCSVLogger(Logger):
    """TorchRL logger that keeps all scalars of a run in one tidy ``metrics.csv``.

    TorchRL's own ``CSVLogger`` writes a file a scalar. Videos become ``videos/NAME_STEP.mp4``,
    strings lines of ``texts/NAME.txt``, hyperparameters ``hparams.json``, and a histogram becomes
    five columns (minimum, quartiles, maximum), which a CSV file can hold.

    Args:
        exp_name: name of the run.
        log_dir: folder of the run; the files go straight into it.
        resume_step: see :class:`MetricsFile`. ``load_state_dict`` forgets later rows as well.

    Examples:
        >>> import tempfile
        >>> logger = MetricsCSVLogger("demo", tempfile.mkdtemp())
        >>> logger.log_scalar("loss", torch.tensor(0.5), step=10)
        >>> logger.experiment.last_step
        10
    """

    experiment: MetricsFile

    def __init__(
        self,
        exp_name: str,
        log_dir: str | os.PathLike[str],
        resume_step: int | None = None,
    ) -> None:
        self._resume_step = resume_step
        super().__init__(exp_name, os.fspath(log_dir))
        steps, columns = read_metrics(self.experiment.path)
        # The last step of each metric: a scalar logged without a step goes to the one after it.
        self._last_steps = {
            name: int(steps[np.flatnonzero(~np.isnan(values))[-1]])
            for name, values in columns.items()
            if not np.isnan(values).all()
        }

    def _create_experiment(self) -> MetricsFile:
        return MetricsFile(Path(self.log_dir) / "metrics.csv", self._resume_step)

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        """Write one value; without ``step``, to the step after this metric's last."""
        self.log_metrics({name: value}, step)

    def log_metrics(
        self,
        metrics: dict[str, Any] | TensorDictBase,
        step: int | None = None,
        *,
        keys_sep: str = "/",
    ) -> dict[str, Any]:
        """Write scalars into one row and return them as floats; nested keys are joined."""
        values = as_floats(metrics, keys_sep)
        if step is None:
            step = 1 + max((self._last_steps.get(name, -1) for name in values), default=-1)
        self.experiment.write(int(step), values)
        for name in values:
            self._last_steps[name] = max(int(step), self._last_steps.get(name, -1))
        return values

    def log_video(
        self,
        name: str,
        video: torch.Tensor,
        step: int | None = None,
        *,
        fps: float = 20,
    ) -> None:
        """Write a video as MP4.

        Args:
            name: what it shows.
            video: uint8 of shape [..., T, C, H, W] with C 1 or 3, TorchRL's layout; leading
                dimensions are shown one after the other.
            step: goes into the file's name.
            fps: frames a second.
        """
        _log_video(self._file("videos", name, step, ".mp4"), video, fps)

    def log_hparams(self, cfg: DictConfig | dict) -> None:
        """Write the configuration as ``hparams.json``; what JSON does not know becomes its repr."""
        write_json(Path(self.log_dir) / "hparams.json", _plain(cfg))

    def log_histogram(
        self, name: str, data: Sequence | torch.Tensor, step: int | None = None, **kwargs: Any
    ) -> None:
        """Write minimum, quartiles and maximum; ``bins`` and other keywords do not apply."""
        values = torch.as_tensor(data).detach().flatten().double().cpu().numpy()
        quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
        labels = ("min", "q25", "median", "q75", "max")
        self.log_metrics(
            {f"{name}/{label}": float(q) for label, q in zip(labels, quantiles, strict=True)}, step
        )

    def log_str(self, name: str, value: str, step: int | None = None) -> None:
        """Append a line "step: value" to the text file of ``name``."""
        with open(self._file("texts", name, None, ".txt"), "a", encoding="utf-8") as file:
            file.write(value + "\n" if step is None else f"{step}: {value}\n")

    def __repr__(self) -> str:
        return f"MetricsCSVLogger(exp_name={self.exp_name!r}, log_dir={self.log_dir!r})"

    def _checkpoint_state(self) -> dict[str, Any]:
        sync(self.experiment.path)  # a checkpoint must not outlive the rows before it
        return {
            "last_step": self.experiment.last_step,
            "last_steps": dict(self._last_steps),
            "pending": [(step, dict(values)) for step, values in self.experiment.pending],
        }

    def _load_checkpoint_state(self, state_dict: Mapping[str, Any]) -> None:
        self.experiment.truncate(state_dict["last_step"])
        if self.experiment.last_step != state_dict["last_step"]:
            notice(
                f"{self.experiment.path} has no row of step {state_dict['last_step']}, at which "
                "the checkpoint was written: rows before it are missing"
            )
        for step, values in state_dict["pending"]:
            self.experiment.write(step, values)
        self._last_steps = dict(state_dict["last_steps"])

    def _file(self, folder: str, name: str, step: int | None, suffix: str) -> Path:
        stem = name if step is None else f"{name}_{step}"
        path = Path(self.log_dir) / folder / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _Wandb(WandbLogger):
    """TorchRL's logger where it needs moviepy (for videos) or a keyword (for histograms)."""

    def log_histogram(self, name: str, data: Sequence | torch.Tensor, **kwargs: Any) -> None:
        # TorchRL hands on bins=None, which wandb refuses; 64 is wandb's own default.
        super().log_histogram(name, data, **{"bins": 64, **kwargs})

    def log_video(self, name: str, video: torch.Tensor, **kwargs: Any) -> None:
        import wandb

        step, fps = kwargs.pop("step", None), kwargs.pop("fps", 20)
        path = Path(self.log_dir) / "wandb" / "videos" / f"{name}_{step}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        _log_video(path, video, fps)
        self._log_payload({name: wandb.Video(str(path), format="mp4")}, step=step)


def make_logger(
    kind: str,
    directory: str | os.PathLike[str],
    *,
    name: str,
    config: dict[str, Any],
    wandb_mode: Literal["online", "offline", "disabled"] = "online",
    wandb_project: str = "llmdpd_torchrl",
    resume_step: int | None = None,
) -> Logger:
    """Make the logger that the configuration asks for.

    Args:
        kind: "csv" (``directory/metrics.csv``), "wandb" (the same, and a Weights & Biases run
            beside it) or "none".
        directory: folder of the run.
        name: name of the run.
        config: the resolved configuration, logged as hyperparameters.
        wandb_mode: "online" needs ``wandb login``; "offline" writes below ``directory`` for a later
            ``wandb sync``; "disabled" makes every call to it do nothing.
        wandb_project: project the run belongs to.
        resume_step: last finished update of the run that is continued, ``None`` for a new run.

    Raises:
        ConfigError: if ``kind`` or ``wandb_mode`` is unknown, wandb is not installed or not logged
            in, or ``directory`` holds the metrics of another run.
    """
    if kind == "none":
        return LoggerGroup([], name, directory)
    if kind not in {"csv", "wandb"}:
        raise ConfigError(f'logger "{kind}" is unknown: choose csv, wandb or none')
    if kind == "wandb":
        _check_wandb(wandb_mode)  # before the CSV file exists, so that a second try can make it
    table = MetricsCSVLogger(name, directory, resume_step)
    table.log_hparams(config)
    if kind == "csv":
        return table
    resumed = resume_step is not None
    beside = _start_wandb(directory, name, config, wandb_mode, wandb_project, resumed)
    return LoggerGroup([table, beside], name, directory)


def _check_wandb(mode: str) -> None:
    if mode not in {"online", "offline", "disabled"}:
        raise ConfigError(f'wandb mode "{mode}" is unknown: choose online, offline or disabled')
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            'logger "wandb" needs the package wandb: pip install "llmdpd_torchrl[wandb]"'
        )


def _start_wandb(
    directory: str | os.PathLike[str],
    name: str,
    config: dict[str, Any],
    mode: str,
    project: str,
    resumed: bool,
) -> Logger:
    import wandb

    id_file = Path(directory) / "wandb_id.txt"  # a resumed run goes on in the same wandb run
    try:
        logger = _Wandb(
            name,
            save_dir=directory,
            id=id_file.read_text().strip() if resumed and id_file.exists() else None,
            project=project,
            mode=mode,
            config=_plain(config),
            log_env_packages=False,  # the run's environment report has them
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:  # no login, no network
        reason = first_line(error)
        raise ConfigError(
            f"wandb can not start ({reason}): run `wandb login`, or set the wandb mode to offline"
        ) from error
    id_file.write_text(f"{logger.experiment.id}\n")
    return logger


def _plain(cfg: Any) -> Any:
    """Turn a configuration into what JSON knows: dictionaries, lists, numbers, strings."""
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, Mapping):
        return {str(key): _plain(value) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return [_plain(value) for value in cfg]
    if cfg is None or isinstance(cfg, (bool, int, str)):
        return cfg
    return cfg if isinstance(cfg, float) and math.isfinite(cfg) else str(cfg)


def _log_video(path: Path, video: torch.Tensor, fps: float) -> None:
    if video.dtype != torch.uint8 or video.ndim < 4 or video.shape[-3] not in {1, 3}:
        raise ValueError(
            f"a video is uint8 [..., T, C, H, W] with 1 or 3 channels, "
            f"not {video.dtype} {tuple(video.shape)}"
        )
    frames = video.flatten(0, -4).permute(0, 2, 3, 1).cpu()
    frames = frames.expand(*frames.shape[:-1], 3)
    write_mp4(path, frames.numpy(), fps)


def write_mp4(path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames as H.264 in yuv420p, which every browser plays.

    Args:
        path: the file to make, atomically.
        frames: uint8 arrays of shape [height, width, 3]; the last row and column of odd sizes are
            repeated, because yuv420p needs even ones.
        fps: frames a second.

    Raises:
        OSError: if it cannot be written.
        ValueError: if there is no frame.
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

    def write(temporary: Path) -> None:
        temporary.write_bytes(content.getvalue())

    write_atomic(path, write)
