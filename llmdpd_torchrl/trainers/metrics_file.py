"""The file ``metrics.csv``: a row per step, a column per metric."""

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

    The cell of a metric that was not logged at a step is empty. The newest row is appended, or
    written over its own line; a new metric or an older step rewrites the file. Rows that cannot be
    written, for example because the disk is full, are written with the next one.

    Args:
        path: the file. Its folder is created.
        resume_step: ``None`` starts a new file, and refuses (ConfigError) an old one that has rows;
            a step continues an old one and removes its rows *after* that step.

    Attributes:
        rows: values by metric by step, in the order of the steps.
        pending: steps of rows that are not on disk as they are here.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.pending: set[int] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = _read_rows(self.path) if self.path.exists() else {}
        if self.rows and resume_step is None:
            raise ConfigError(
                f"{self.path} holds another run's metrics: "
                "resume that run, choose another folder, or delete the file"
            )
        self.truncate(-1 if resume_step is None else resume_step)

    @property
    def last_step(self) -> int:
        """The highest step, -1 if there is no row."""
        return next(reversed(self.rows), -1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Put ``values`` into the row of ``step``, replacing values that are already there."""
        if "step" in values:
            raise ValueError('a metric cannot be called "step", the name of the first column')
        is_older = step < self.last_step
        row = self.rows.setdefault(step, {})
        row.update((name, float(value)) for name, value in values.items())
        if is_older:
            self.rows = dict(sorted(self.rows.items()))
        try:
            if is_older or self.pending or not values.keys() <= set(self._columns):
                self._write_all()
            else:
                self._write_last()
        except OSError as error:
            if not self.pending:
                notice(
                    f"cannot write {self.path} ({error.strerror or error}): its rows stay in "
                    "memory and are written later"
                )
            self.pending.add(step)

    def next_step(self, names: Iterable[str]) -> int:
        """The last step, or the one after it if its row has one of these metrics."""
        has = any(name in self.rows.get(self.last_step, {}) for name in names)
        return max(self.last_step, 0) + has

    def truncate(self, step: int) -> None:
        """Remove the rows after ``step``."""
        self.rows = {key: row for key, row in self.rows.items() if key <= step}
        self._write_all()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        content = self._lines(self.rows, header=True)
        write_bytes(self.path, content)
        last = {step: self.rows[step] for step in [*self.rows][-1:]}
        self._last, self._last_start = self.last_step, len(content) - len(self._lines(last))
        self.pending.clear()

    def _write_last(self) -> None:
        """Write the last row over its own line, or append it."""
        step = self.last_step
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            start = file.seek(self._last_start if step == self._last else end)
            file.write(self._lines({step: self.rows[step]}))
            file.truncate()
        self._last, self._last_start = step, start

    def _lines(self, rows: Mapping[int, Mapping[str, float]], header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *self._columns], restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in rows.items())
        return text.getvalue().encode()


def read_metrics(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps of a metrics file, int64 [rows], and each metric's values, NaN where not logged."""
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
