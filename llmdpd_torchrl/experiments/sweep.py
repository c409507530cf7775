"""Sweeps: what their jobs leave, whatever process they ran in, and the summary at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from llmdpd_torchrl.utils.files import write_json


def sweep_folder() -> Path | None:
    """The folder of the sweep that this job belongs to, ``None`` outside of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def note_job(cfg: DictConfig, objective: float, code: int, error: str) -> None:
    """Write ``job-NUMBER.json`` into the folder of the sweep, for :class:`SweepSummary`."""
    folder = sweep_folder()
    if folder is not None:
        number = HydraConfig.get().job.num
        note = {
            "output_dir": cfg.get("output_dir"),
            "objective": objective if math.isfinite(objective) else None,
            "exit_code": code,
            "error": error,
        }
        write_json(folder / f"job-{number}.json", note)


class SweepSummary(Callback):
    """Hydra's callback that prints what became of the jobs, and the best one of an optimisation.

    Attributes:
        codes: exit codes of the jobs of the last sweep.
    """

    codes: ClassVar[list[int]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the notes of an earlier sweep in the same folder."""
        for path in Path(config.hydra.sweep.dir).glob("job-*.json"):
            path.unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print a line a job: its objective and its folder."""
        folder = Path(config.hydra.sweep.dir)
        paths = sorted(folder.glob("job-*.json"), key=lambda path: int(path.stem[4:]))
        notes = [json.loads(path.read_text()) for path in paths]
        SweepSummary.codes = [note["exit_code"] for note in notes]
        failed = sum(code > 0 for code in SweepSummary.codes)
        print(f"sweep of {len(notes)} runs{f', {failed} of them failed' if failed else ''}:")
        for note in notes:
            value = "-" if note["objective"] is None else f"{note['objective']:.4f}"
            if note["exit_code"]:
                value = "failed"
            print(": ".join(filter(None, (f"  {value:7} {note['output_dir']}", note["error"]))))
        best = folder / "optimization_results.yaml"  # written by sweepers that optimise
        if best.exists():
            found = yaml.safe_load(best.read_text())
            settings = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
            print(f"best: {found['best_value']:.4f} with {settings} ({best})")
