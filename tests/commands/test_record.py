"""``llmdpd record``: by a function, at random, by hand; ``llmdpd data export`` of recordings."""

import io

import pytest

from llmdpd_torchrl.__main__ import main
from llmdpd_torchrl.data import load_episodes

MODULE = "llmdpd_torchrl.envs.corners"
CORNER = ("record", "llmdpd/Corner-v0", "--import", MODULE, "--success-info", "is_success")
pytestmark = pytest.mark.usefixtures("here")


def test_a_function_acts(capsys):
    given = ("--policy", f"{MODULE}:go_ne", "--episodes", "2", "--output", "ne.npz")
    assert main([*CORNER, *given]) == 0
    assert "ne.npz: 2 episodes" in capsys.readouterr().out
    assert load_episodes("ne.npz").trajectory_success.all()


def test_options_reach_the_environment_and_chance_acts(capsys):
    given = ("--policy", "random", "--option", "g=3.5", "--max-steps", "4", "--output", "p.npz")
    assert main(["record", "Pendulum-v1", *given]) == 0
    data = load_episodes("p.npz", action_range=(-2.0, 2.0))
    assert data.lengths.tolist() == [4]


def test_somebody_types(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("1\none\n0.5 -0.5\n\n0 0\n" + "\n" * 3))
    given = ("--policy", "hand", "--max-steps", "5", "--output", "hand.npz")
    assert main([*CORNER, *given]) == 0
    out = capsys.readouterr().out
    assert "give 2 numbers" in out
    assert "no numbers" in out
    actions = load_episodes("hand.npz").transitions["action"]
    assert actions.tolist() == [[0.5, -0.5]] * 2 + [[0.0, 0.0]] * 3


def test_an_input_that_ends_is_one_line(monkeypatch, capsys, here):
    monkeypatch.setattr("sys.stdin", io.StringIO("0 0\n"))
    assert main([*CORNER, "--policy", "hand", "--output", "hand.npz"]) == 2
    assert "the input ended before the episode did" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_recordings_are_exported_with_their_words(capsys):
    for corner in ("ne", "nw"):
        given = ("--policy", f"{MODULE}:go_{corner}", "--option", f"corner={corner}")
        assert main([*CORNER, *given, "--episodes", "2", "--output", f"{corner}.npz"]) == 0
    sources = ("ne=ne.npz", "nw=nw.npz")
    assert main(["data", "export", *sources, "--lerobot", "lr", "--text", "ne=Go right."]) == 0
    assert "lr: 2 tasks, 4 episodes" in capsys.readouterr().out
    assert load_episodes("lr").tasks == ("Go right.", "nw")
    assert main(["data", "export", *sources, "--hdf5", "both.hdf5"]) == 0
    assert load_episodes("both.hdf5").tasks == ("ne", "nw")
