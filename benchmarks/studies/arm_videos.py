"""Videos of what a policy does by what it is shown: an MP4 an arm, some unseen tasks side by side.

    python -m benchmarks.studies.arm_videos
    python -m benchmarks.studies.arm_videos fold=rep5 'arms=[clean,noisy]' videos=FOLDER

The policy is that of the study ``unseen_all``, variant ``variant``, ``fold`` and ``seed``; it is
trained if it is not there. Each video has the first ``tiles`` tasks of the fold, on the first of
the study's goals. Further settings: ``study``, and ``data``, ``output`` and ``store`` as for that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from benchmarks.common import RESULTS
from benchmarks.studies.jobs import Place, jobs
from benchmarks.studies.options import run_command
from benchmarks.studies.registry import read_studies
from benchmarks.studies.runner import check, prompted_by, train
from benchmarks.studies.store import Store
from llmdpd_torchrl.experiments.evaluate import video_renderer
from llmdpd_torchrl.trainers.loggers import write_mp4
from llmdpd_torchrl.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
ARMS = ("clean", "noisy", "half_speed", "states_only", "other_actions", "none")


@dataclass
class Options:
    """Settings of the command."""

    study: str = "unseen_all"
    fold: str = "ml45"
    arms: Sequence[str] = field(default=ARMS)
    variant: str = "ours"
    seed: int = 0
    tiles: int = 4
    data: str = ""
    definitions: str = str(Path(__file__).parent / "definitions")
    store: str = str(RESULTS)
    output: str = str(ROOT / "outputs" / "results")
    videos: str = str(ROOT / "docs" / "videos")


def run(options: Options) -> None:
    """Write the videos.

    Raises:
        UserError: if there is no such study, fold or arm, or the training fails.
        Timeout: if another process trains the policy.
    """
    studies = read_studies(Path(options.definitions))
    if options.study not in studies:
        raise ConfigError(f"there is no study {options.study!r}: use one of {', '.join(studies)}")
    study = studies[options.study]
    data = Path(options.data).resolve() if options.data else None
    place = Place(Store(Path(options.store).resolve()), data, Path(options.output).resolve())
    folds = [options.fold] if options.fold else []
    job, *others = jobs(study, [options.variant], [options.seed], folds, options.arms)
    if others:
        raise ConfigError(f"fold is {options.fold!r}, which is several: give one")
    check([job], place)
    job.folder(place).mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder(place) / ".lock", timeout=0):
        trained = train(job, place)
    folder = Path(options.videos)
    folder.mkdir(parents=True, exist_ok=True)
    for arm in (arm for arm in job.variant.arms if arm.name in options.arms):
        prompted = prompted_by(trained, study, arm)
        prompted.cfg.video.tasks = list(trained.split.held_out[: options.tiles])
        render = video_renderer(prompted, progress=False)
        if render is None:  # it has said why
            return
        path = folder / f"unseen_{arm.name}.mp4"
        write_mp4(path, render(), prompted.cfg.video.fps)
        print(path, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run, Options, arguments)


if __name__ == "__main__":
    sys.exit(main())
