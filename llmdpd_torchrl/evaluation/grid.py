"""Videos of evaluation episodes: one, or many side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, make_policy_env
from llmdpd_torchrl.evaluation.suites import Suite
from llmdpd_torchrl.evaluation.video import Frame, add_caption, render_frame, write_video
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError

__all__ = ["film_grid", "record_episode"]


def record_episode(
    policy: LLMDPDPolicy,
    task: str,
    path: str | os.PathLike[str],
    tables: PromptTables | None = None,
    *,
    caption: str,
    settings: EvaluationSettings | None = None,
    fps: float = 30,
    every: int = 2,
    size: tuple[int, int] = (480, 360),
    goal_index: int = 0,
    progress: bool = True,
) -> bool:
    """Film an episode on one evaluation goal and return whether it succeeded.

    Where actions are drawn, it is another draw than the evaluation's episode on that goal.

    Args:
        policy: acts as in :func:`~llmdpd_torchrl.evaluation.evaluate`.
        task: a Meta-World task.
        path: of the video, ``.mp4`` or ``.gif``.
        caption: burnt into a strip under the picture; whether it succeeded is added.
        tables: as for ``evaluate``.
        settings: as for ``evaluate``; the film shows one of its goals.
        fps: frames a second of the video.
        every: one frame in so many steps.
        size: width and height of the picture in pixels.
        goal_index: which of the evaluation goals.
        progress: whether to show a bar: without a graphics card a frame takes about 0.1 s.

    Raises:
        ConfigError: if nothing on this machine can render.
    """
    settings = settings or EvaluationSettings()
    suite = settings.suite([task])
    frames, success, outcome = _film(
        policy, suite, task, goal_index, tables, settings, every, size, progress
    )
    write_video(frames, path, fps, caption=f"{caption} [{outcome}]")
    return success


def film_grid(
    policy: LLMDPDPolicy,
    captions: Mapping[str, str],
    tables: PromptTables | None = None,
    *,
    settings: EvaluationSettings | None = None,
    suite: Suite | None = None,
    every: int = 4,
    size: tuple[int, int] = (240, 180),
    columns: int | None = None,
    progress: bool = True,
) -> tuple[list[Frame], dict[str, bool]]:
    """Film the first goal of several tasks side by side; who is done waits in its last picture.

    Where actions are drawn, these are other draws than the evaluation's on these goals.

    Args:
        policy: acts as in :func:`~llmdpd_torchrl.evaluation.evaluate`.
        captions: by task, the text burnt into its tile; whether it succeeded, or its score, is
            added.
        tables: as for ``evaluate``.
        settings: as for ``evaluate``.
        suite: as for ``evaluate``.
        every: one frame in so many steps.
        size: width and height of a tile's picture in pixels.
        columns: of the grid; default: about as many as rows.
        progress: whether to show bars.

    Returns:
        the pictures, for :func:`~llmdpd_torchrl.evaluation.video.write_video`, and whether each
        task's episode succeeded.

    Raises:
        ConfigError: if no task is named, or nothing on this machine can render.
    """
    if not captions:
        raise ConfigError("a grid of episodes needs at least one task")
    settings = settings or EvaluationSettings()
    suite = settings.suite(list(captions)) if suite is None else suite
    films, outcomes = [], {}
    for task, caption in captions.items():
        frames, success, outcome = _film(
            policy, suite, task, 0, tables, settings, every, size, progress
        )
        films.append(list(add_caption(frames, f"{caption} [{outcome}]")))
        outcomes[task] = success
    return _tile(films, columns or math.ceil(math.sqrt(len(films)))), outcomes


def _tile(films: Sequence[Sequence[Frame]], columns: int) -> list[Frame]:
    """Films of one width, and of captions of any height, as one."""
    height = max(frames[0].shape[0] for frames in films)
    width = films[0][0].shape[1]
    rows = -(-len(films) // columns)
    pictures = []
    for number in range(max(map(len, films))):
        picture = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
        for place, frames in enumerate(films):
            frame = frames[min(number, len(frames) - 1)]
            top, left = place // columns * height, place % columns * width
            picture[top : top + frame.shape[0], left : left + width] = frame
        pictures.append(picture)
    return pictures


def _film(
    policy: LLMDPDPolicy,
    suite: Suite,
    task: str,
    goal_index: int,
    tables: PromptTables | None,
    settings: EvaluationSettings,
    every: int,
    size: tuple[int, int],
    progress: bool,
) -> tuple[list[Frame], bool, str]:
    """The pictures of one episode, whether it succeeded, and what to say of that."""
    simulator = suite.make(task, render=size)
    env = make_policy_env(policy, simulator, tables or PromptTables())
    generator = settings.generator(goal_index)
    frames = []
    bar = tqdm(desc=f"film {task}", unit="step", disable=not progress)
    total = 0.0
    with bar, torch.no_grad():
        env.base_env.choose_episode(goal_index)
        state = env.reset()
        done, success, steps = False, False, 0
        while not done:
            if steps % every == 0:
                frames.append(render_frame(env.base_env.simulator))
            action = settings.act(policy, state.unsqueeze(0), generator).squeeze(0)
            step = env.step(state.set("action", action))["next"]
            state, done = step.exclude("reward"), bool(step["done"])
            success |= bool(step.get("success", False))
            total += float(step["reward"])
            steps += 1
            bar.update()
        frames.append(render_frame(env.base_env.simulator))
    env.close()
    score = suite.score(task, total)
    outcome = "success" if success else "failure"
    return frames, success, outcome if score is None else f"score {score:.0f}"
