"""Several loggers as one, which goes on when one of them fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.record.loggers.common import Logger

from llmdpd_torchrl.utils.errors import first_line, notice

__all__ = ["LoggerGroup", "as_floats"]


def as_floats(metrics: dict[str, Any] | TensorDictBase, keys_sep: str) -> dict[str, float]:
    """Scalars as floats on the CPU; nested keys are joined."""
    if isinstance(metrics, TensorDictBase):
        metrics = metrics.flatten_keys(keys_sep).to_dict()
    return {name: float(value) for name, value in metrics.items()}


class LoggerGroup(Logger):
    """Pass everything on to several loggers; without any, log nothing.

    A logger that raises is said to be left out, in one line, and left out from then on: hours of
    training are worth more than their log.

    Args:
        loggers: where to.
        exp_name: name of the run.
        log_dir: folder of the run.

    Examples:
        >>> import tempfile
        >>> from llmdpd_torchrl.trainers.loggers import MetricsCSVLogger
        >>> folder = tempfile.mkdtemp()
        >>> group = LoggerGroup([MetricsCSVLogger("demo", folder)], "demo", folder)
        >>> group.log_scalar("loss", 0.5, step=10)
        >>> group.experiment[0].last_step
        10
    """

    experiment: list[Any]

    def __init__(
        self, loggers: Sequence[Logger], exp_name: str, log_dir: str | os.PathLike[str]
    ) -> None:
        self.loggers = list(loggers)
        #: Those that raised.
        self.failed: list[Logger] = []
        super().__init__(exp_name, os.fspath(log_dir))

    def _create_experiment(self) -> list[Any]:
        return [logger.experiment for logger in self.loggers]

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        """Log one value everywhere."""
        self.log_metrics({name: value}, step)

    def log_metrics(
        self,
        metrics: dict[str, Any] | TensorDictBase,
        step: int | None = None,
        *,
        keys_sep: str = "/",
    ) -> dict[str, Any]:
        """Log several scalars everywhere, brought to the CPU once."""
        safe = as_floats(metrics, keys_sep)
        self._each(lambda logger: logger.log_metrics(dict(safe), step, keys_sep=keys_sep))
        return safe

    def log_video(
        self, name: str, video: torch.Tensor, step: int | None = None, **kwargs: Any
    ) -> None:
        """Log a video everywhere."""
        self._each(lambda logger: logger.log_video(name, video, step=step, **kwargs))

    def log_hparams(self, cfg: DictConfig | dict) -> None:
        """Log the configuration everywhere."""
        self._each(lambda logger: logger.log_hparams(cfg))

    def log_histogram(self, name: str, data: Sequence | torch.Tensor, **kwargs: Any) -> None:
        """Log a histogram everywhere."""
        self._each(lambda logger: logger.log_histogram(name, data, **kwargs))

    def log_str(self, name: str, value: str, step: int | None = None) -> None:
        """Log a string everywhere."""
        self._each(lambda logger: logger.log_str(name, value, step))

    def flush(self, timeout: float | None = None) -> None:
        """Flush every logger."""
        self._each(lambda logger: logger.flush(timeout))

    def shutdown(self, timeout: float | None = None) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.shutdown(timeout))
        self._service_shutdown = True

    def _each(self, call: Callable[[Logger], Any]) -> None:
        """Call every logger that has not failed yet."""
        for logger in self.loggers:
            if logger in self.failed:
                continue
            try:
                call(logger)
            except Exception as error:  # whatever it is: another's network, account or disk
                self.failed.append(logger)
                reason = f"{type(error).__name__}: {first_line(error)}"
                notice(f"{type(logger).__name__} failed ({reason}): going on without it")

    def __repr__(self) -> str:
        return f"LoggerGroup({self.loggers!r})"

    def _checkpoint_state(self) -> dict[str, Any]:
        states: dict[str, Any] = {}
        self._each(lambda logger: states.update({self._name(logger): logger.state_dict()}))
        return {"loggers": states}

    def _load_checkpoint_state(self, state_dict: Mapping[str, Any]) -> None:
        # A logger that had failed, or was added or left out, has no state to go on from.
        states = state_dict["loggers"]
        for logger in self.loggers:
            if self._name(logger) in states:
                logger.load_state_dict(states[self._name(logger)])

    def _name(self, logger: Logger) -> str:
        return f"{self.loggers.index(logger)} {type(logger).__name__}"
