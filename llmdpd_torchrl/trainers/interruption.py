"""End a training in an orderly way when the machine is wanted back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from llmdpd_torchrl.trainers.offline import OfflineTrainer
from llmdpd_torchrl.utils.errors import notice

__all__ = ["Interrupted", "handle_signals"]


class Interrupted(SystemExit):
    """The training was told to stop, saved, and did; its exit code is 128 plus the signal's number.

    That is 143 after SIGTERM and 130 after SIGINT (Ctrl-C), as shells and schedulers have it.

    Examples:
        >>> Interrupted(signal.SIGTERM).code
        143
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def handle_signals(
    trainer: OfflineTrainer,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Train inside: a signal stops the training at its next round, where it saves and exits.

    A round is at most ``log_every`` updates, and an evaluation if one is due. A second signal does
    at once what it does without this.

    Args:
        trainer: what is stopped; it saves if :class:`~llmdpd_torchrl.trainers.Checkpointing` is
            registered.
        signals: to be handled. Python handles signals in the main thread only.

    Raises:
        Interrupted: after the training has stopped.

    Examples:
        >>> with handle_signals(trainer):  # doctest: +SKIP
        ...     trainer.train()
    """
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        trainer.request_stop(f"received {signal.Signals(number).name}")

    for kind in signals:
        before[kind] = signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    if received:
        saved = trainer.checkpointing and trainer.checkpointing.last
        rest = f"saved as {saved.path}; the same command continues it" if saved else "nothing saved"
        name = signal.Signals(received[0]).name
        notice(f"{name}: stopped after {trainer.collected_frames} updates, {rest}")
        raise Interrupted(received[0])
