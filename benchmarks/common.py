"""The one format that all benchmarks write their results in."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmdpd_torchrl.evaluation.report import git_revision
from llmdpd_torchrl.files import write_json
from llmdpd_torchrl.workers import available_cores

RESULTS = Path(__file__).parent / "results"


def write_figures(name: str, figures: Mapping[str, float], raw: Any, command: str) -> None:
    """Write ``results/NAME.json`` and beside it the raw measurements, and print the figures."""
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}_raw.json", raw)
    write_json(
        RESULTS / f"{name}.json",
        {
            "command": command,
            "commit": git_revision(),
            "machine": {
                "cores": available_cores(),
                "processor": platform.machine(),
                "python": platform.python_version(),
                "load_average": round(os.getloadavg()[0], 2),
            },
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "figures": dict(figures),
            "raw": f"{name}_raw.json",
        },
    )
    for figure, value in figures.items():
        print(f"{figure}: {value:.4g}")


def check_figures(name: str, figures: Mapping[str, float], tolerance: float) -> int:
    """Compare a short run with the committed figures; return the exit code."""
    committed = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    code = 0
    for figure, value in figures.items():
        expected = committed[figure]
        fits = abs(value - expected) <= tolerance * abs(expected)
        print(f"{figure}: {value:.4g}, committed {expected:.4g}: {'ok' if fits else 'DIFFERS'}")
        code |= not fits
    if code:
        print(f"{name}: a figure differs by more than {tolerance:.0%}", file=sys.stderr)
    return int(code)
