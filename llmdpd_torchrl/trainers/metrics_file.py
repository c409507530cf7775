"""The one ``metrics.csv`` of a run: written row by row, cut back on resume, read for plots."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmdpd_torchrl.utils.errors import ConfigError, DataError, notice
from llmdpd_torchrl.utils.files import write_atomic

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile:
    """A CSV file with one row a step and one column a metric, whole after every write.

    The first column is ``step``; a metric that was not logged at a step leaves its cell empty.
    Writing to the last step again completes its row; a new metric, or an older step, rewrites the
    file (both are rare), everything else appends one line and flushes it. Rows that can not be
    written, because the disk is full for example, are kept and tried again with the next one.

    Args:
        path: the file. Its folder is made.
        resume_step: ``None`` starts a new file and refuses to touch an old one; a step continues an
            old one, and forgets its rows *after* that step, which the resumed run will write again.

    Raises:
        ConfigError: if there are rows already and ``resume_step`` is ``None``.
        DataError: if the file that is to be continued can not be read.

    Attributes:
        pending: rows that are not on the disk yet, as steps and values.

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
        self._columns: list[str] = []
        self._last_step = -1
        self._last_row: dict[str, float] = {}
        self._last_start = 0  # byte at which the last row begins
        self._end = 0  # byte at which it ends; what is behind it was cut off while written
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read_rows(self.path) if self.path.exists() else {}
        if rows and resume_step is None:
            raise ConfigError(
                f"{self.path} holds another run's metrics: "
                "resume that run, choose another folder, or delete the file"
            )
        self._rewrite(rows)
        if resume_step is not None:
            self.truncate(resume_step)

    @property
    def last_step(self) -> int:
        """The highest step in the file, -1 in an empty one."""
        return self._last_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Put ``values`` into the row of ``step``; a value that is there already is replaced."""
        if "step" in values:
            raise ValueError('a metric can not be called "step", the name of the first column')
        waiting = bool(self.pending)
        self.pending.append((step, {name: float(value) for name, value in values.items()}))
        try:
            while self.pending:
                self._write(*self.pending[0])
                del self.pending[0]
        except OSError as error:
            if not waiting:
                notice(
                    f"can not write {self.path} ({error.strerror or error}): its rows are kept in "
                    "memory and tried again"
                )

    def _write(self, step: int, values: dict[str, float]) -> None:
        if step < self._last_step or not values.keys() <= set(self._columns):
            rows = _read_rows(self.path)
            rows[step] = {**rows.get(step, {}), **values}
            self._rewrite(rows)
            return
        if step == self._last_step:
            values = {**self._last_row, **values}
        start = self._last_start if step == self._last_step else self._end
        with open(self.path, "r+b") as file:
            file.seek(start)
            file.write(self._line(step, values))
            end = file.tell()
            file.truncate()
        self._last_step, self._last_row = step, values
        self._last_start, self._end = start, end

    def truncate(self, step: int) -> None:
        """Forget the rows after ``step``."""
        if step < self._last_step:
            rows = _read_rows(self.path)
            self._rewrite({key: row for key, row in rows.items() if key <= step})

    def _rewrite(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        # A dict keeps the columns in the order in which they first appeared.
        self._columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        steps = sorted(rows)
        lines = [_csv_line(["step", *self._columns])]
        lines += [self._line(step, rows[step]) for step in steps]
        write_atomic(self.path, lambda temporary: _write_bytes(temporary, b"".join(lines)))
        self._last_step = steps[-1] if steps else -1
        self._last_row = dict(rows[steps[-1]]) if steps else {}
        self._last_start = sum(map(len, lines[:-1]))
        self._end = self._last_start + len(lines[-1])

    def _line(self, step: int, values: Mapping[str, float]) -> bytes:
        cells = [repr(values[name]) if name in values else "" for name in self._columns]
        return _csv_line([str(step), *cells])


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
    """Read ``{step: {metric: value}}``, leaving out a last line that was cut off while written."""
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


def _csv_line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
