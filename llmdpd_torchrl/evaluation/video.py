"""Videos of evaluation episodes, rendered on machines without a screen."""

from __future__ import annotations

import atexit
import functools
import math
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, make_policy_env
from llmdpd_torchrl.evaluation.suites import Suite
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError

#: An RGB image of shape [height, width, 3].
Frame = NDArray[np.uint8]

#: Meta-World mounts these cameras upside down.
_UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})

# Run in a process of its own: a broken GL library may raise, hang or kill. It renders a white
# sphere the way gymnasium will, and a black image counts as a failure.
_PROBE = """
import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 1 1 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
viewer = OffScreenViewer(model, data, 32, 32)
brightest = viewer.render("rgb_array").max()
viewer.close()
raise SystemExit(0 if brightest > 0 else "the image is black")
"""
_PROBE_SECONDS = 120

# Closed before EGL's display goes away at exit: mujoco's contexts complain when they go after it.
_open_renderers: weakref.WeakSet[Any] = weakref.WeakSet()


def rendering_backend() -> tuple[str | None, str]:
    """Find an OpenGL backend that renders without a screen, and select it for this process.

    A backend that the user chose with ``MUJOCO_GL`` is the only one tried; otherwise EGL, then
    OSMesa (on Linux), the first that renders an image in a probe process. The finding is
    cached for the life of the process. The backend found is put into
    ``os.environ["MUJOCO_GL"]``: gymnasium reads it when an environment renders its first frame, so
    it does not matter that MuJoCo and Meta-World are usually imported by then.

    Returns:
        The backend and the empty string, or ``None`` and one line that says what to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen in {"disable", "disabled", "off", "false", "0"}:
        return None, f"no videos: MUJOCO_GL={chosen} switches rendering off"
    platform = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
    for backend in (chosen,) if chosen else platform:
        if _renders(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend, ""
    tried = f"MUJOCO_GL={chosen} does" if chosen else f"{' and '.join(platform)} do"
    advice = "unset it, or install" if chosen else "install"
    return None, (
        f"no videos: {tried} not render on this machine; on Debian or Ubuntu {advice}: "
        "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"
    )


def rendering_problem() -> str:
    """Why MuJoCo's images cannot be rendered on this machine; empty if they can."""
    backend, problem = rendering_backend()
    return "" if backend else problem


@functools.cache
def _renders(backend: str) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def render_frame(env: Any) -> Frame:
    """Render what the camera of an environment sees, the right way up.

    Of one without MuJoCo, it is what the environment itself renders. Meta-World's four ``corner*``
    cameras hang upside down: their images are turned by 180°. The environment's own GL context is
    made current first: gymnasium does not, and would return the image of another environment when
    two of them render in turns. ``env`` is made with ``render_mode="rgb_array"``.

    Raises:
        ConfigError: if nothing on this machine can render; the line says what to install.
    """
    env = env.unwrapped
    if not hasattr(env, "mujoco_renderer"):
        return np.ascontiguousarray(env.render(), dtype=np.uint8)
    backend, problem = rendering_backend()
    if backend is None:
        raise ConfigError(problem)
    renderer = env.mujoco_renderer
    if renderer.viewer is not None:
        renderer.viewer.make_context_current()
    frame = env.render()
    _close_at_exit(renderer)
    if renderer.camera_id >= 0 and env.model.camera(renderer.camera_id).name in _UPSIDE_DOWN:
        frame = frame[::-1, ::-1]
    return np.ascontiguousarray(frame, dtype=np.uint8)


def _close_at_exit(renderer: Any) -> None:
    # Exit functions run last in, first out. Registered after a first frame, and so after mujoco's
    # own that ends the EGL display, ours runs while the display is still there.
    if not _open_renderers:
        atexit.unregister(_close_renderers)
        atexit.register(_close_renderers)
    _open_renderers.add(renderer)


def _close_renderers() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


def task_caption(task: str, objective: str, *, is_seen: bool, prompt: str) -> str:
    """What stands below a task's video; ``prompt`` is what the policy is prompted with."""
    return f"{task} ({'seen' if is_seen else 'unseen'}, prompt: {prompt}): {objective}"


def add_caption(frames: Sequence[Frame], caption: str) -> list[Frame]:
    """The frames with a strip of dark text on white below, wrapped to their width."""
    width = frames[0].shape[1]
    size = max(11, width // 24)
    # matplotlib carries this font, so letters look alike on every machine and ε is among them.
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    font = ImageFont.truetype(font_file, size)
    letters = int((width - size) / font.getlength("x"))
    text = "\n".join(line for part in caption.splitlines() for line in textwrap.wrap(part, letters))
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    strip = Image.new("RGB", (width, math.ceil(box[3]) + size), "white")
    place = (size // 2, size // 2)
    ImageDraw.Draw(strip).multiline_text(place, text, fill=(30, 30, 30), font=font)
    return [np.concatenate([frame, np.asarray(strip, dtype=np.uint8)]) for frame in frames]


def record_grid(
    policy: LLMDPDPolicy,
    captions: Mapping[str, str],
    tables: PromptTables | None = None,
    *,
    settings: EvaluationSettings | None = None,
    suite: Suite | None = None,
    every: int = 4,
    size: tuple[int, int] = (240, 180),
    progress: bool = True,
) -> tuple[list[Frame], dict[str, bool]]:
    """Record an episode on the first goal of each of several tasks, side by side.

    Episodes that end earlier stay on their last frame. Where actions are sampled, these are other
    samples than the evaluation's on these goals.

    Args:
        policy: acts as in :func:`~llmdpd_torchrl.evaluation.evaluate`.
        captions: by task, the text below its tile; whether it succeeded, or its score, is added.
        tables: as for ``evaluate``.
        settings: as for ``evaluate``.
        suite: as for ``evaluate``.
        every: one frame in so many steps.
        size: width and height of a tile's image in pixels.
        progress: whether to show bars.

    Returns:
        the frames, for :func:`~llmdpd_torchrl.trainers.loggers.write_mp4`, and whether each
        task's episode succeeded.

    Raises:
        ConfigError: if no task is named, or nothing on this machine can render.
    """
    if not captions:
        raise ConfigError("a grid of episodes needs at least one task")
    settings = settings or EvaluationSettings()
    suite = settings.suite(list(captions)) if suite is None else suite
    videos, outcomes = [], {}
    for task, caption in captions.items():
        frames, success, outcome = _record(
            policy, suite, task, tables, settings, every, size, progress
        )
        videos.append(add_caption(frames, f"{caption} [{outcome}]"))
        outcomes[task] = success
    return _tile(videos), outcomes


def _tile(videos: Sequence[Sequence[Frame]]) -> list[Frame]:
    """Videos of one width, and of captions of any height, as one, in about a square."""
    columns = math.ceil(math.sqrt(len(videos)))
    height = max(frames[0].shape[0] for frames in videos)
    width = videos[0][0].shape[1]
    rows = -(-len(videos) // columns)
    images = []
    for number in range(max(map(len, videos))):
        image = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
        for place, frames in enumerate(videos):
            frame = frames[min(number, len(frames) - 1)]
            top, left = place // columns * height, place % columns * width
            image[top : top + frame.shape[0], left : left + width] = frame
        images.append(image)
    return images


def _fit(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame in an image of this width and height, with white beside it if it is of others."""
    width, height = size
    if frame.shape[:2] == (height, width):
        return frame
    image = ImageOps.pad(Image.fromarray(frame), size, color=(255, 255, 255))
    return np.asarray(image)


def _record(
    policy: LLMDPDPolicy,
    suite: Suite,
    task: str,
    tables: PromptTables | None,
    settings: EvaluationSettings,
    every: int,
    size: tuple[int, int],
    progress: bool,
) -> tuple[list[Frame], bool, str]:
    """The frames of the first episode, whether it succeeded, and the outcome in words."""
    simulator = suite.make(task, render=size)
    env = make_policy_env(policy, simulator, tables or PromptTables())
    generator = settings.generator(0, policy.device)
    frames = []
    bar = tqdm(desc=f"record {task}", unit="step", disable=not progress)
    total = 0.0
    with bar, torch.no_grad():
        env.base_env.choose_episode(0)
        state = env.reset()
        done, success, steps = False, False, 0
        while not done:
            if steps % every == 0:
                frames.append(_fit(render_frame(env.base_env.simulator), size))
            action = settings.act(policy, state.unsqueeze(0), generator).squeeze(0)
            step = env.step(state.set("action", action))["next"]
            state, done = step.exclude("reward"), bool(step["done"])
            success |= bool(step.get("success", False))
            total += float(step["reward"])
            steps += 1
            bar.update()
        frames.append(_fit(render_frame(env.base_env.simulator), size))
    env.close()
    score = suite.score(task, total)
    outcome = "success" if success else "failure"
    return frames, success, outcome if score is None else f"score {score:.0f}"
