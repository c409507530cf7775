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
from llmdpd_torchrl.utils.processes import available_cores

_BEST = "optimization_results.yaml"  # written by sweepers that optimise


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


def share_cores(cfg: DictConfig) -> None:
    """Let the jobs of a sweep that a launcher runs at once share the cores of the machine.

    Where ``evaluation.workers`` or ``data.workers`` is null, it gets this job's part.
    """
    if sweep_folder() is None:
        return
    launcher, cores = HydraConfig.get().launcher, available_cores()
    jobs = launcher.get("n_jobs") or 1  # joblib's: -1 is all cores, -2 all but one, null is 1
    part = cores // (jobs if jobs > 0 else max(1, cores + 1 + jobs))
    if launcher._target_.endswith("submitit_launcher.LocalLauncher"):  # all jobs at once
        part = min(cores, launcher.cpus_per_task or 1)
    for group in (cfg.evaluation, cfg.data):
        if group.get("workers", 0) is None:
            group.workers = max(1, part)


class SweepSummary(Callback):
    """Hydra's callback that prints what became of the jobs, and the best one of an optimisation.

    Attributes:
        codes: exit codes of the jobs of the last sweep.
    """

    codes: ClassVar[list[int]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove what an earlier sweep has left in the same folder."""
        folder = Path(config.hydra.sweep.dir)
        for path in [*folder.glob("job-*.json"), folder / _BEST]:
            path.unlink(missing_ok=True)

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
        best = folder / _BEST
        if best.exists():
            found = yaml.safe_load(best.read_text())
            settings = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
            print(f"best: {found['best_value']:.4f} with {settings} ({best})")
