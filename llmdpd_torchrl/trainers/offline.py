"""Offline training on TorchRL's Trainer, with a replay buffer in the collector's place."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer

from llmdpd_torchrl.data.replay import BatchSource
from llmdpd_torchrl.trainers.loggers import LoggerGroup
from llmdpd_torchrl.trainers.optimization import (
    OfflineOptimizationStepper,
    RunningMeans,
    TargetUpdater,
)
from llmdpd_torchrl.trainers.ranks import all_ranks, spread
from llmdpd_torchrl.utils.errors import ConfigError, DivergenceError, first_line, notice
from llmdpd_torchrl.utils.files import check_tensors, write_json, write_tensors

#: Updates whose numbers are remembered before the device is asked for them.
MOST_REMEMBERED = 1000

Compile: TypeAlias = Literal["off", "default", "max-autotune"]
"""Mode of :func:`torch.compile`, or none."""


class ReplaySource:
    """Placeholder for an online trainer's collector: an endless source of "frames".

    A frame is one update; its batch is sampled by the trainer's ``process_optim_batch`` hook. Each
    item is an empty tensordict of ``updates`` frames.
    """

    init_random_frames = 0
    requested_frames_per_batch = None

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            yield TensorDict({}, batch_size=[self.updates])

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, as a collector without an environment."""

    update_policy_weights_ = load_state_dict = shutdown

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}


class _Seen(NamedTuple):
    """What is remembered of an update until the device is asked whether it was finite."""

    update: int
    values: dict[str, Tensor]
    rows: Any
    is_broken: Tensor


class OfflineTrainer(Trainer):
    """TorchRL's trainer for a fixed dataset: ``total_updates`` updates on a replay buffer.

    Frames are updates: ``total_frames``, ``collected_frames``, log and save intervals count them.

    On a GPU, the buffer is moved there where it fits (see
    :class:`~llmdpd_torchrl.data.replay.BatchSource`); otherwise batches are
    pinned and copied asynchronously. Between two log entries, or a thousand updates, no value is
    read from the device, so that the host samples the next batch while the device computes. Rows
    are sampled on the host: their order is the same on every device.

    A loss or gradient that is not finite ends the training with an error that names the update and
    the buffer's rows: on the CPU at once, on another device at the next log entry or checkpoint,
    and without a change of the networks in between.

    Args:
        loss_module: an :class:`~llmdpd_torchrl.objectives.LLMDPDLoss`, or another loss of TorchRL.
        replay_buffer: sampled once per update. Priorities are updated where it has any.
        total_updates: length of the training.
        stepper: owns the optimizer; default: :class:`OfflineOptimizationStepper` with a cosine
            schedule over ``total_updates``.
        target_updater: default: :class:`~llmdpd_torchrl.trainers.TargetUpdater` of the loss.
        logger: a TorchRL logger; scalars are means over the last ``log_every`` updates.
        log_every: updates between log entries.
        limits: of logged means, by their names in the loss's output. The first that leaves its
            limits is reported in one line; values beyond what rewards can sum to mean nothing.
        progress_bar: whether to show one.
        failures: folder for the batch, the networks and the numbers of an update that is not
            finite (``divergence-UPDATE/``); ``None`` writes nothing.
        device: of loss and batches; default: that of the loss.
        threads: torch's threads on the CPU while it trains; ``None`` leaves their number. Small
            networks gain little from several, and lose much where other processes compute.
        check_finite: when to look for values that are not finite: at each ``"update"`` or at each
            ``"log"`` entry; default: the former on the CPU, the latter elsewhere.
        compile: mode of :func:`torch.compile` for the loss, forwards and backwards: ``"default"``,
            ``"max-autotune"``, or ``"off"``. The first update then takes a minute. A loss that
            cannot be compiled is computed as it is, after a line that says why.

    Raises:
        ConfigError: if a count is below 1, or a ``stepper`` was built for another device.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
        >>> from llmdpd_torchrl.objectives import DiffusionQLLoss
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> data = TensorDict({
        ...     "observation": torch.randn(32, 3), "action": torch.rand(32, 2),
        ...     "next": {"observation": torch.randn(32, 3), "reward": torch.randn(32, 1),
        ...              "terminated": torch.zeros(32, 1, dtype=torch.bool),
        ...              "done": torch.zeros(32, 1, dtype=torch.bool)},
        ... }, batch_size=[32])
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(32), batch_size=8)
        >>> _ = buffer.extend(data)
        >>> actor = DiffusionActor(2, 3, hidden=(8,), in_keys=["observation"])
        >>> loss = DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(8,)))
        >>> trainer = OfflineTrainer(loss, buffer, total_updates=4, progress_bar=False)
        >>> trainer.train()
        >>> trainer.collected_frames
        4
    """

    def __init__(
        self,
        loss_module: LossModule,
        replay_buffer: ReplayBuffer,
        *,
        total_updates: int,
        stepper: OfflineOptimizationStepper | None = None,
        target_updater: TargetUpdater | None = None,
        logger: Logger | None = None,
        log_every: int = 100,
        limits: Mapping[str, tuple[float, float]] | None = None,
        progress_bar: bool = True,
        failures: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        threads: int | None = 1,
        check_finite: Literal["update", "log"] | None = None,
        compile: Compile = "off",
    ) -> None:
        if compile not in get_args(Compile):
            raise ConfigError(f"compile is {compile!r}: use {', '.join(get_args(Compile))}")
        if total_updates < 1 or log_every < 1:
            raise ConfigError(
                f"total_updates is {total_updates} and log_every {log_every}: both must be >= 1"
            )
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}: it must be at least 1, or None")
        current = next(loss_module.parameters()).device
        # An empty tensor's device has its number.
        self.device = current if device is None else torch.empty(0, device=device).device
        if self.device != current:
            if stepper is not None:
                raise ConfigError(
                    f"the loss is on {current}, and device is {self.device}: move the networks "
                    "before building loss and stepper"
                )
            loss_module.to(self.device)
        # Updates per round; log entries and the end of the training are ends of rounds.
        chunk = math.gcd(total_updates, log_every)
        if logger is not None and not isinstance(logger, LoggerGroup):
            logger = LoggerGroup([logger], logger.exp_name, logger.log_dir)  # survives its failure
        super().__init__(
            collector=ReplaySource(chunk),
            total_frames=total_updates,
            frame_skip=1,
            optim_steps_per_batch=chunk,
            loss_module=loss_module,
            optimization_stepper=stepper
            or OfflineOptimizationStepper(loss_module, total_updates=total_updates),
            logger=logger,
            progress_bar=progress_bar,
            log_interval=0,
            # Off: it would keep every logged value of every update.
            auto_log_optim_steps=False,
        )
        self._compiled = None if compile == "off" else torch.compile(loss_module, mode=compile)
        self.target_updater = target_updater or TargetUpdater(loss_module)
        self.log_every = log_every
        self._limits = dict(limits or {})
        #: What must be equal to resume, see :class:`~llmdpd_torchrl.trainers.Checkpointing`.
        self.identity: dict[str, Any] = {"total_updates": total_updates, "log_every": log_every}
        #: Folder of the newest checkpoint that was saved or resumed from.
        self.last_checkpoint: Path | None = None
        #: Hooks may enter contexts here; they are left when :meth:`train` ends, however it does.
        self.during_training = contextlib.ExitStack()
        # TorchRL keeps every logged value, and these positions on the class.
        self._log_dict: defaultdict[str, Any] = defaultdict(lambda: deque(maxlen=1))
        self._last_log: dict[str, Any] = {}
        self.batches = BatchSource(replay_buffer, self.device)
        self._means = RunningMeans()
        self._failures = None if failures is None else Path(failures)
        default = "update" if self.device.type == "cpu" else "log"
        self._checks_updates = (check_finite or default) == "update"
        self._threads = threads
        self._seen: list[_Seen] = []  # updates since the device was last asked
        self._is_broken = torch.zeros((), dtype=torch.bool, device=self.device)
        spread(loss_module.state_dict().values())
        self.register_op("setup", self._show_progress)
        self.register_op("process_optim_batch", lambda _: self.batches.sample())
        self.register_op("post_optim", self.target_updater.step)
        self.register_op("post_optim_log", self.batches.update_priorities)
        self.register_op("post_optim_complete_log", self._log_means)
        self.register_op("post_steps", self._stop_together)
        self.register_module("target_updater", self.target_updater)
        self.register_module("means", self._means)
        self.register_module("batches", self.batches)

    def train(self) -> None:
        """Run all remaining updates; none if a finished training was resumed."""
        if self.collected_frames >= self.total_frames:
            return
        with self.during_training:
            if self._threads is not None:
                self.during_training.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self._threads)
            super().train()

    def compute_loss(
        self, sub_batch: TensorDictBase, method: str | None = None
    ) -> TensorDictBase | tuple[Any, ...]:
        """Call the loss, or a method of it; the loss itself may be compiled."""
        if method is None and self._compiled is not None:
            try:
                return self._compiled(sub_batch)
            except Exception as error:  # of any kind: no compiler, code that it cannot read
                self._compiled = None
                losses = self.loss_module(sub_batch)  # raises what is the loss's own mistake
                notice(f"the loss is not compiled ({first_line(error)}): continuing without")
                return losses
        return super().compute_loss(sub_batch, method)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            DataError: if a network has other tensors.
            KeyError: if a registered module has no state in it.
        """
        saved = state_dict["loss_module"]
        check_tensors(saved, self.loss_module.state_dict(), "loss_module", "this training")
        super().load_state_dict(state_dict)

    @property
    def updates_made(self) -> int:
        """Number of updates so far, including the current one."""
        return self._optim_count

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether it was asked to stop."""
        return bool(self._stop_training)

    @property
    def is_last_round(self) -> bool:
        """Whether the training ends after this round: it is complete or was asked to stop."""
        return self.is_asked_to_stop or self.collected_frames >= self.total_frames

    def watch(self, result: TensorDictBase, batch: TensorDictBase) -> Tensor | None:
        """Note whether the losses and gradient norms of this update are all finite.

        Args:
            result: scalars of this update.
            batch: of this update.

        Returns:
            1.0 from the first update on that is not finite and 0.0 before, the ``found_inf`` of
            PyTorch's optimizers; ``None`` if every update is checked at once.

        Raises:
            DivergenceError: if every update is checked, and this one is not finite.
        """
        values = {k: v for k, v in result.items() if k.startswith(("loss_", "grad_norm_"))}
        is_broken = ~torch.stack([value.isfinite() for value in values.values()]).all()
        seen = _Seen(self.updates_made, values, batch.get("index", default=None), is_broken)
        if self._checks_updates:
            if is_broken:
                raise self._divergence(seen, batch)
            return None
        if len(self._seen) >= MOST_REMEMBERED:
            self.check_finite()
        self._seen.append(seen)
        self._is_broken = self._is_broken | is_broken
        return self._is_broken.float()

    def check_finite(self) -> None:
        """Look at the updates since the last call; waits for the device.

        Raises:
            DivergenceError: naming the first update that was not finite.
        """
        seen, self._seen = self._seen, []
        if seen and self._is_broken:
            raise self._divergence(next(one for one in seen if one.is_broken), None)

    def _divergence(self, seen: _Seen, batch: TensorDictBase | None) -> DivergenceError:
        """Save the batch, the networks and the numbers; return the error to raise."""
        values = {name: float(value) for name, value in seen.values.items()}
        rows = seen.rows.flatten().cpu() if isinstance(seen.rows, Tensor) else None
        name = next(name for name, value in values.items() if not math.isfinite(value))
        message = f"{name} is not finite at update {seen.update}"
        if rows is not None:
            more = f", ... ({len(rows)} in all)" if len(rows) > 8 else ""
            message += f", buffer rows {', '.join(map(str, rows[:8].tolist()))}{more}"
        if self._failures is not None:
            folder = self._failures / f"divergence-{seen.update}"
            if batch is None and rows is not None:
                batch = self.batches.replay_buffer.storage[rows]
            about = {
                "update": seen.update,
                "values": {key: repr(value) for key, value in values.items()},  # JSON has no NaN
                "rows": None if rows is None else rows.tolist(),
                "networks": "as before this update, except for the targets",
            }
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if batch is not None:
                    write_tensors(folder / "batch.safetensors", batch.flatten_keys(".").to_dict())
                write_tensors(folder / "networks.safetensors", self.loss_module.state_dict())
                write_json(folder / "about.json", about)
                message += f"; saved in {folder}"
            except OSError as error:
                message += f"; it could not be saved in {folder} ({first_line(error)})"
        if self.last_checkpoint is not None:
            message += f"; the last good checkpoint is {self.last_checkpoint}"
        return DivergenceError(
            f"{message}; lower the learning rate or the guidance weight, or clip gradients"
        )

    def _show_progress(self) -> None:
        """Start the bar of a resumed training at its update, and close it at the end."""
        if self.progress_bar:
            self._pbar.initial = self._pbar.n = self.collected_frames
            self._pbar.refresh()
            self.during_training.callback(self._pbar.close)

    def _log_means(self, updates: int, means: TensorDictBase) -> Mapping[str, Any] | None:
        """At a log entry, return the means since the last one, if all are finite."""
        self._means.add(means)
        if updates % self.log_every and updates != self.total_frames:
            return None
        self.check_finite()
        scalars = {f"train/{key}": value for key, value in self._means.take().items()}
        self._check_limits(scalars, updates)
        if self.progress_bar:
            names = {"bc": "train/bc", "q": "train/q_value"}
            self._pbar_str.update({k: scalars[v] for k, v in names.items() if v in scalars})
        return scalars

    def _stop_together(self) -> None:
        """Stop after this round if any rank was asked to: the others would wait for it."""
        if any(all_ranks(self.is_asked_to_stop)) and not self.is_asked_to_stop:
            self.request_stop("another rank was asked to")

    def _check_limits(self, scalars: Mapping[str, float], updates: int) -> None:
        """Report, once for each name, a mean that lies beyond its limits."""
        for name, (low, high) in list(self._limits.items()):
            value = scalars.get(f"train/{name}", low)
            if not low <= value <= high:
                del self._limits[name]
                notice(
                    f"update {updates}: {name} is {value:.4g}, beyond the {low:.4g} to {high:.4g} "
                    "that the rewards of the data can sum to"
                )


class Interrupted(SystemExit):
    """The training stopped on a signal; the exit code is 128 plus the signal's number.

    That is 143 after SIGTERM and 130 after SIGINT (Ctrl-C), as shells and schedulers expect.

    Examples:
        >>> Interrupted(signal.SIGTERM).code
        143
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def handle_signals(trainer: OfflineTrainer) -> Iterator[None]:
    """Stop the training in this context on SIGTERM or SIGINT: it ends its round, saves and exits.

    A round takes at most ``log_every`` updates and an evaluation. A second signal has its usual
    effect at once. Python handles signals in the main thread only.

    Args:
        trainer: saves if a :class:`Checkpointing` is registered.

    Raises:
        Interrupted: after the training has stopped.

    Examples:
        >>> with handle_signals(trainer):  # doctest: +SKIP
        ...     trainer.train()
    """
    received: list[int] = []
    with contextlib.ExitStack() as before:

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(number)
            before.close()
            trainer.request_stop(f"received {signal.Signals(number).name}")

        for kind in (signal.SIGTERM, signal.SIGINT):
            before.callback(signal.signal, kind, signal.signal(kind, stop))
        yield
    if received:
        path = trainer.last_checkpoint
        rest = "nothing saved" if path is None else f"saved as {path}; re-run to resume"
        name = signal.Signals(received[0]).name
        notice(f"{name}: stopped after {trainer.collected_frames} updates, {rest}")
        raise Interrupted(received[0])
