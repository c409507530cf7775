"""The videos of a run: an episode of each of some tasks, side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmdpd_torchrl.evaluation.grid import film_grid
from llmdpd_torchrl.evaluation.video import Frame, rendering_backend, write_video
from llmdpd_torchrl.experiments.evaluate import settings_of, shown

if TYPE_CHECKING:
    from llmdpd_torchrl.experiments.run import Run

__all__ = ["film", "interval_film"]


def film(run: Run) -> None:
    """Write ``episodes.mp4``."""
    if not _captions(run):
        return
    backend, problem = rendering_backend()
    if backend is None:
        print(f"video: {problem}")
        return
    frames = _pictures(run, run.cfg.progress)
    write_video(frames, run.output / "episodes.mp4", run.cfg.video.fps)


def interval_film(run: Run) -> Callable[[], list[Frame]] | None:
    """What films during the training, if that is wanted and this machine can."""
    if not run.cfg.video.during_training or not _captions(run) or rendering_backend()[0] is None:
        return None
    return functools.partial(_pictures, run, False)


def _captions(run: Run) -> dict[str, str]:
    """The tasks of the videos, each with what is burnt into its pictures."""
    cfg, split, prompts = run.cfg, run.split, run.family.prompts(run)
    tasks = (split.held_out or split.train)[:4]
    if cfg.video.tasks is not None:
        tasks = tuple(cfg.video.tasks)
    control = cfg.evaluation.control
    prompt = cfg.prompt if control == "both" else f"{cfg.prompt}, shown {control}"
    return {
        task: f"{task} ({'seen' if task in split.train else 'unseen'}, prompt: {prompt}): "
        f"{prompts[task].objective}"
        for task in tasks
    }


def _pictures(run: Run, progress: bool) -> list[Frame]:
    """One episode of each of the videos' tasks, side by side."""
    cfg = run.cfg
    table, bank = shown(run)
    settings = settings_of(run)
    frames, _ = film_grid(
        run.policy,
        _captions(run),
        text_table=table,
        bank=bank,
        settings=settings,
        suite=run.family.suite(run, settings),
        every=cfg.video.every,
        size=(cfg.video.width, cfg.video.height),
        progress=progress,
    )
    return frames
