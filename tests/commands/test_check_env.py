"""``llmdpd check-env``: a line per finding, and an exit code."""

import sys

import pytest

from llmdpd_torchrl.commands.check_env import main

MODULE = """
import gymnasium
import numpy as np


class Drift(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.random.rand(3).astype("f4"), {}

    def step(self, action):
        return np.random.rand(3).astype("f4"), 0.0, False, False, {"success": False}


class Broken(Drift):
    def step(self, action):
        raise ValueError("no such body")


gymnasium.register("Drift-v0", Drift, max_episode_steps=10)
gymnasium.register("Broken-v0", Broken)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # and take away again what the command adds
    (tmp_path / "drifting.py").write_text(MODULE)
    return ["--import", "drifting"]


def findings(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[1]: (line.split()[0], line) for line in lines}


@pytest.mark.parametrize("name", ["reach-v3", "Hopper-v4", "halfcheetah-vel-1.5"])
def test_the_packages_own_have_no_fault(name, capsys):
    assert main([name, "--steps", "500"]) == 0
    found = findings(capsys)
    assert {kind for kind, _ in found.values()} == {"ok"}
    assert {"specs", "observation", "action", "determinism", "reward", "end", "success"} == set(
        found
    )


def test_faults_of_any_gymnasium_environment(capsys):
    assert main(["Pendulum-v1"]) == 1
    kind, line = findings(capsys)["action"]
    assert kind == "FAULT"
    assert "RescaleAction" in line


def test_an_environment_of_the_users_own(own, capsys):
    assert main(["Drift-v0", *own]) == 1
    found = findings(capsys)
    assert found["determinism"][0] == "FAULT"
    assert "truncated after 10 steps" in found["end"][1]
    assert "each step says" in found["success"][1]
    assert main(["Broken-v0", *own]) == 1
    assert "ValueError: no such body" in findings(capsys)["simulator"][1]


def test_modules_here_hide_no_others(own, tmp_path, monkeypatch, capsys):
    path = [entry for entry in sys.path if entry != str(tmp_path)]
    monkeypatch.setattr(sys, "path", [*path])
    assert main(["Nope-v1"]) == 2
    assert sys.path == path
    assert main(["Drift-v0", *own]) == 1
    assert sys.path == [*path, str(tmp_path)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Nope-v1"], "--import the module"),
        (["not an id"], "Malformed"),
        (["Hopper-v4", "--import", "no_such_module"], "no_such_module"),
        (["Hopper-v4", "--steps", "0"], "--steps is 0"),
        (["Hopper-v4", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_mistakes_are_one_line(arguments, says, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
