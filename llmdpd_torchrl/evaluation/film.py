"""A video of one evaluation episode."""

from __future__ import annotations

import os

import torch
from tqdm.auto import tqdm

from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, make_policy_env
from llmdpd_torchrl.evaluation.video import render_frame, write_video
from llmdpd_torchrl.modules.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

__all__ = ["record_episode"]


def record_episode(
    policy: LLMDPDPolicy,
    task: str,
    path: str | os.PathLike[str],
    *,
    caption: str,
    text_table: torch.Tensor | None = None,
    bank: TrajectoryPromptBank | None = None,
    settings: EvaluationSettings | None = None,
    fps: float = 30,
    every: int = 2,
    size: tuple[int, int] = (480, 360),
    goal_index: int = 0,
    progress: bool = True,
) -> bool:
    """Film the episode of one evaluation goal and return whether it succeeded.

    Args:
        policy: acts as in :func:`~llmdpd_torchrl.evaluation.rollout.evaluate`.
        task: a Meta-World task.
        path: of the video, ``.mp4`` or ``.gif``.
        caption: burnt into a strip under the picture; whether it succeeded is added.
        text_table: as for ``evaluate``.
        bank: as for ``evaluate``.
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
    simulator = settings.suite([task]).make(task, render=size)
    env = make_policy_env(policy, simulator, text_table=text_table, bank=bank)
    generator = settings.generator(goal_index)
    frames = []
    bar = tqdm(total=settings.max_steps, desc=f"film {task}", unit="step", disable=not progress)
    with bar, torch.no_grad():
        env.base_env.choose_episode(goal_index)
        state = env.reset()
        done, steps = False, 0
        while not done:
            if steps % every == 0:
                frames.append(render_frame(env.base_env.simulator))
            action = settings.act(policy, state.unsqueeze(0), generator).squeeze(0)
            step = env.step(state.set("action", action))["next"]
            state, done = step.exclude("reward"), bool(step["done"])
            steps += 1
            bar.update()
        frames.append(render_frame(env.base_env.simulator))
    success = bool(state["success"])
    env.close()
    write_video(frames, path, fps, caption=f"{caption} [{'success' if success else 'failure'}]")
    return success
