"""The tidy ``metrics.csv`` of a run: written row by row, truncated on resume, read for plots."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from llmdpd_torchrl.utils.errors import ConfigError, DataError, notice
from llmdpd_torchrl.utils.files import write_bytes


class MetricsFile:
    """A CSV file with one row per step and one column per metric, complete after every write.

    The first column is ``step``; the cell of a metric that was not logged at a step is empty.
    Writing to the last step again extends its row. A new metric or an older step rewrites the file;
    anything else appends a line. Rows that cannot be written, for example because the disk is full,
    stay in memory and are written with the next one.

    Args:
        path: the file. Its folder is created.
        resume_step: ``None`` starts a new file and refuses an old one that has rows; a step
            continues an old one and removes its rows *after* that step.

    Raises:
        ConfigError: if the file has rows and ``resume_step`` is ``None``.
        DataError: if the file to continue cannot be read.

    Attributes:
        last_step: the highest step in the file, -1 in an empty one.
        pending: steps and values of rows that are not on disk yet.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> metrics = MetricsFile(path)
        >>> metrics.write(10, {"loss": 0.5})
        >>> metrics.write(20, {"loss": 0.25, "q": 1.0})
        >>> print(path.read_text().strip())
        step,loss,q
        10,0.5,
        20,0.25,1.0
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.last_step = -1
        self._last_row: dict[str, float] = {}
        self._last_start = self._end = 0  # bytes at which the last row begins and ends
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read_rows(self.path) if self.path.exists() else {}
        if rows and resume_step is None:
            raise ConfigError(
                f"{self.path} holds another run's metrics: "
                "resume that run, choose another folder, or delete the file"
            )
        last = math.inf if resume_step is None else resume_step
        self._rewrite({step: row for step, row in rows.items() if step <= last})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Put ``values`` into the row of ``step``, replacing values that are already there."""
        if "step" in values:
            raise ValueError('a metric cannot be called "step", the name of the first column')
        waiting = bool(self.pending)
        self.pending.append((step, {name: float(value) for name, value in values.items()}))
        try:
            while self.pending:
                self._write(*self.pending[0])
                del self.pending[0]
        except OSError as error:
            if not waiting:
                notice(
                    f"cannot write {self.path} ({error.strerror or error}): its rows stay in "
                    "memory and are written later"
                )

    def next_step(self, names: Iterable[str]) -> int:
        """The last step, or the one after it if its row has one of these metrics."""
        has = any(name in self._last_row for name in names)
        return max(self.last_step, 0) + has

    def truncate(self, step: int) -> None:
        """Remove the rows after ``step``."""
        if step < self.last_step:
            rows = _read_rows(self.path)
            self._rewrite({key: row for key, row in rows.items() if key <= step})

    def _write(self, step: int, values: dict[str, float]) -> None:
        if step < self.last_step or not values.keys() <= set(self._columns):
            rows = _read_rows(self.path)
            rows.setdefault(step, {}).update(values)
            self._rewrite(dict(sorted(rows.items())))
            return
        is_last = step == self.last_step
        row = {**self._last_row, **values} if is_last else values
        start = self._last_start if is_last else self._end
        with open(self.path, "r+b") as file:
            file.seek(start)
            file.write(self._lines({step: row}))
            end = file.tell()
            file.truncate()
        self.last_step, self._last_row, self._last_start, self._end = step, row, start, end

    def _rewrite(self, rows: Mapping[int, dict[str, float]]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        self.last_step, self._last_row = next(reversed([*rows.items()]), (-1, {}))
        before = self._lines({k: v for k, v in rows.items() if k < self.last_step}, header=True)
        last = self._lines({self.last_step: self._last_row} if rows else {})
        self._last_start, self._end = len(before), len(before + last)
        write_bytes(self.path, before + last)

    def _lines(self, rows: Mapping[int, Mapping[str, float]], header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *self._columns], restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in rows.items())
        return text.getvalue().encode()


def read_metrics(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read a metrics file into arrays.

    Returns:
        The steps, int64 of shape [rows], and for each metric a float64 array of the same shape
        that is NaN where the metric was not logged.

    Raises:
        DataError: if the file is missing or no metrics file.
    """
    rows = _read_rows(Path(path))
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {
        name: np.array([row.get(name, math.nan) for row in rows.values()], dtype=np.float64)
        for name in names
    }
    return np.array(list(rows), dtype=np.int64), columns


def _read_rows(path: Path) -> dict[int, dict[str, float]]:
    """Read ``{step: {metric: value}}``, without a last line that is incomplete."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: it is written during training") from error
    if not text:
        return {}
    header, *lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))) or [[]]
    if header[:1] != ["step"]:
        raise DataError(f'{path} is no metrics file: its first column is not "step"')
    rows: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            step, *cells = line
            named = zip(header[1:], cells, strict=True)
            rows[int(step)] = {name: float(cell) for name, cell in named if cell}
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}: delete the line") from error
    return rows
