"""``llmdpd video``: an MP4 of a saved policy, or one line that says why there is none."""

import imageio.v3 as iio
import pytest

from llmdpd_torchrl.commands.video import main
from llmdpd_torchrl.evaluation.video import rendering_backend

SHORT = ["--max-steps", "4", "--size", "160", "120", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.integration
@pytest.mark.skipif(rendering_backend()[0] is None, reason="nothing renders here")
def test_tasks_side_by_side_with_their_words(make_policy, dataset_folder, here, capsys):
    folder = make_policy("both")
    given = ["--demonstration", str(dataset_folder), "--tasks", "reach-v3", "window-open-v3"]
    assert main([folder, *given, *SHORT]) == 0
    assert "video: run-seed3.mp4" in capsys.readouterr().out
    frames = iio.imread(here / "run-seed3.mp4", plugin="pyav")
    assert frames.shape[0] == 3  # steps 0 and 2, and the last
    assert frames.shape[1] > 120  # the caption is below
    assert frames.shape[2] == 320
    assert main([folder, *given, *SHORT]) == 0
    assert (here / "run-seed3-2.mp4").exists()


def test_where_nothing_renders_it_says_so_in_one_line(make_policy, here, monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert main([make_policy("none"), *SHORT]) == 2
    assert capsys.readouterr().err == "error: no videos: MUJOCO_GL=off switches rendering off\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--every", "0"], "--every is 0"),
        (["--fps", "-1"], "--fps is -1"),
        (["--size", "0", "10"], "--size is 0"),
        (["--output", "a.gif"], "name a file that ends in .mp4"),
        (["--tasks", "reach-v9"], "did you mean reach-v3"),
    ],
)
def test_mistakes_are_one_line(make_policy, options, says, capsys):
    assert main([make_policy("none"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
