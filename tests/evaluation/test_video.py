"""Videos are real files; frames come from the right environment; a machine without GL says so."""

from __future__ import annotations

import os
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest

from llmdpd_torchrl.evaluation import EvaluationSettings, video
from llmdpd_torchrl.evaluation.video import (
    add_caption,
    record_grid,
    render_frame,
    rendering_backend,
)
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers.loggers import write_mp4
from llmdpd_torchrl.utils.errors import ConfigError

needs_gl = pytest.mark.skipif(rendering_backend()[0] is None, reason=rendering_backend()[1])


@pytest.fixture(autouse=True)
def _own_findings(monkeypatch):
    """Leave the process as it was: its backend, and what was found out about backends."""
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
    before = video._renders
    yield
    assert video._renders is before
    before.cache_clear()


@pytest.fixture
def no_gl(monkeypatch):
    """Make every GL binding of mujoco refuse to load, in the probe process as well."""
    video._renders.cache_clear()
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "none-such")


def make_env(task: str, **settings):
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    settings = {"render_mode": "rgb_array", "camera_name": "corner2", **settings}
    env = ALL_V3_ENVIRONMENTS[task](width=160, height=120, **settings)
    env._freeze_rand_vec = False
    env._set_task_called = True
    env.reset(seed=0)
    return env


def colours(count: int, height: int, width: int) -> list[np.ndarray]:
    return [np.full((height, width, 3), 10 + 10 * index, np.uint8) for index in range(count)]


# --- which backend ---------------------------------------------------------------------------


def test_without_gl_one_line_names_the_packages(no_gl):
    backend, problem = rendering_backend()
    assert backend is None
    assert "MUJOCO_GL" not in os.environ
    assert "egl and osmesa" in problem
    for package in ("libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libosmesa6"):
        assert package in problem
    assert "\n" not in problem


def test_rendering_without_gl_is_a_user_error(no_gl):
    class Environment:
        render_mode = "rgb_array"
        mujoco_renderer = None

        @property
        def unwrapped(self):
            return self

    with pytest.raises(ConfigError, match="libegl1"):
        render_frame(Environment())


def test_a_backend_the_user_chose_is_the_only_one_tried(no_gl, monkeypatch):
    tried = []
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    monkeypatch.setattr(video, "_PROBE", "import os, sys; sys.exit(os.environ['MUJOCO_GL'])")
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: tried.append(k["env"]["MUJOCO_GL"]) or run(*a, **k)
    )
    backend, problem = rendering_backend()
    assert backend is None
    assert tried == ["osmesa"]
    assert "MUJOCO_GL=osmesa does not render" in problem
    assert os.environ["MUJOCO_GL"] == "OSMesa"


def test_osmesa_follows_egl_and_is_selected(no_gl, monkeypatch):
    probe = "import os, sys; sys.exit(os.environ['MUJOCO_GL'] != 'osmesa')"
    monkeypatch.setattr(video, "_PROBE", probe)
    assert rendering_backend() == ("osmesa", "")
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_library_that_kills_its_process_does_not_kill_ours(no_gl, monkeypatch):
    monkeypatch.setattr(video, "_PROBE", "import os; os.abort()")
    assert rendering_backend()[0] is None


def test_a_library_that_hangs_is_given_up(no_gl, monkeypatch):
    monkeypatch.setattr(video, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(video, "_PROBE_SECONDS", 0.2)
    assert rendering_backend()[0] is None


def test_the_finding_is_remembered(no_gl, monkeypatch):
    assert rendering_backend()[0] is None
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("probed again"))
    assert rendering_backend()[0] is None


def test_rendering_switched_off_is_respected(no_gl, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    backend, problem = rendering_backend()
    assert backend is None
    assert "MUJOCO_GL=disable" in problem


# --- frames ----------------------------------------------------------------------------------


@needs_gl
def test_corner2_is_the_right_way_up():
    env = make_env("door-open-v3")
    frame = render_frame(env)
    raw = env.render()
    env.close()
    assert frame.shape == (120, 160, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, raw[::-1, ::-1])
    # The pale floor is below, the grey void beyond it above.
    assert frame[-20:].mean() > frame[:20].mean() + 20


@needs_gl
def test_a_camera_that_hangs_upright_is_not_turned():
    env = make_env("door-open-v3", camera_name="topview")
    frame = render_frame(env)
    np.testing.assert_array_equal(frame, env.render())
    env.close()


@needs_gl
def test_environments_that_render_in_turns_keep_their_own_pictures():
    first, second = make_env("door-open-v3"), make_env("hammer-v3")
    door, hammer = render_frame(first), render_frame(second)
    assert np.abs(door.astype(int) - hammer).mean() > 1
    np.testing.assert_array_equal(render_frame(first), door)
    np.testing.assert_array_equal(render_frame(second), hammer)
    first.close()
    np.testing.assert_array_equal(render_frame(second), hammer)
    second.close()


@needs_gl
@pytest.mark.integration
def test_no_variable_is_needed_and_an_open_environment_ends_quietly():
    """The library is found after metaworld is imported, and nothing is printed at exit."""
    script = (
        "from metaworld.env_dict import ALL_V3_ENVIRONMENTS as envs\n"
        "from llmdpd_torchrl.evaluation.video import render_frame\n"
        "made = [envs['reach-v3'](render_mode='rgb_array', camera_name='corner2',"
        " width=64, height=48) for _ in range(2)]\n"
        "for env in made:\n"
        "    env._set_task_called, env._freeze_rand_vec = True, False\n"
        "    env.reset(seed=0)\n"
        "    print(render_frame(env).shape)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["(48, 64, 3)"] * 2, done.stderr
    assert "Exception" not in done.stderr
    assert "Error" not in done.stderr


# --- files -----------------------------------------------------------------------------------


def test_mp4_has_every_frame_even_sizes_and_the_caption(tmp_path):
    path = tmp_path / "video.mp4"
    write_mp4(path, add_caption(colours(12, 121, 161), "open the door " * 6), fps=12)
    data = imageio.immeta(path, plugin="pyav")
    frames = imageio.imread(path, plugin="pyav")
    assert data["fps"] == 12
    assert data["codec"] == "h264"
    assert data["video_format"] == "yuv420p"
    assert len(frames) == 12
    height, width, _ = frames[0].shape
    assert width == 162
    assert height % 2 == 0
    strip = frames[5][122:, :160]
    assert (strip > 240).mean() > 0.5  # white paper
    assert (strip < 90).mean() > 0.02  # dark letters
    levels = [frame[:110].mean() for frame in frames]
    assert levels == pytest.approx([10 + 10 * index for index in range(12)], abs=3)


def test_long_words_and_line_ends_are_wrapped_into_the_width():
    [frame] = add_caption(colours(1, 10, 100), "x" * 200 + "\nε_θ second")
    assert frame.shape[1] == 100
    strip = frame[10:]
    assert (strip[:, -2:] > 250).all()  # no letter runs out at the right
    [single] = add_caption(colours(1, 10, 100), "x")
    assert len(strip) > 8 * len(single[10:])


def test_a_video_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "video.mp4"
    write_mp4(path, colours(3, 48, 64), fps=5)
    before = path.read_bytes()

    def failing():
        yield from colours(1, 48, 64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(path, failing(), fps=5)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]


# --- episodes ---------------------------------------------------------------------------------


@needs_gl
def test_a_grid_of_episodes():
    captions = {"reach-v3": "reach", "window-open-v3": "a long text that needs more lines " * 3,
                "push-v3": "push"}  # fmt: skip
    config = NetworkConfig(prompt="none", hidden=[8])
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    settings = EvaluationSettings(episodes_per_task=2, max_steps=4)
    frames, outcomes = record_grid(
        policy, captions, settings=settings, every=2, size=(160, 120),
        progress=False,
    )  # fmt: skip
    assert outcomes == dict.fromkeys(captions, False)
    assert len(frames) == 3  # steps 0 and 2, and the last state
    height, width, _ = frames[0].shape
    assert width == 320
    assert height > 2 * 140  # two rows, and strips of text
    assert all(frame.shape == frames[0].shape for frame in frames)
    with pytest.raises(ConfigError, match="at least one task"):
        record_grid(policy, {})
