"""Tasks of one's own, by one file: trained, evaluated, used by the other commands."""

import json
from pathlib import Path

import imageio.v3 as iio
import pytest

from llmdpd_torchrl.__main__ import main
from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.policies import LLMDPDPolicy

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULE = "llmdpd_torchrl.envs.corners"
CORNER = ("record", "llmdpd/Corner-v0", "--import", MODULE, "--success-info", "is_success")
SMALL = ("preset=smoke", "prompt=trajectory", "progress=false", "evaluation.episodes_per_task=2",
         "evaluation.workers=1", "output_dir=run")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy's task file and a few episodes of each corner."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "corners.yaml").write_text((EXAMPLES / "own_tasks" / "corners.yaml").read_text())
    for corner in ("ne", "nw", "se", "sw"):
        given = ("--option", f"corner={corner}", "--policy", f"{MODULE}:go_{corner}")
        output = ("--episodes", "4", "--noise", "0.2", "--output", str(folder / f"{corner}.npz"))
        assert main([*CORNER, *given, *output]) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder, run_example):
    process = run_example("train_own.py", folder, "tasks=corners.yaml", *SMALL)
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.integration
def test_all_stages_run_and_both_groups_are_evaluated(folder, finished):
    found = json.loads((folder / "run" / "results.json").read_text())
    assert [(task["task"], task["seen"]) for task in found["summary"]["tasks"]] == [
        ("ne", True), ("nw", True), ("se", True), ("sw", False)
    ]  # fmt: skip
    assert found["starts"]["sw"]["options"] == {"corner": "sw"}
    frames = iio.imread(folder / "run" / "episodes.mp4", plugin="pyav")
    assert frames.shape[2] == 160  # one held-out task, of preset=smoke's width
    assert (folder / "run" / "report" / "report.html").exists()


@pytest.mark.integration
def test_a_saved_policy_is_evaluated_filmed_and_recorded(here, finished, capsys):
    given = ("--task-file", "corners.yaml", "--demonstration", "sw.npz")
    assert main(["eval", "run", *given, "--episodes", "2", "--workers", "1",
                 "--output", "again"]) == 0  # fmt: skip
    assert "demonstration of sw: episode 0 of 4" in capsys.readouterr().out
    mine, theirs = (
        json.loads((here / name / "results.json").read_text()) for name in ("again", "run")
    )
    assert [task["task"] for task in mine["summary"]["tasks"]] == ["sw"]
    lengths = [
        [episode["length"] for episode in found["episodes"] if episode["task"] == "sw"]
        for found in (mine, theirs)
    ]
    assert lengths[0] == lengths[1]
    assert main(["video", "run", *given, "--size", "96", "96", "--output", "sw.mp4"]) == 0
    assert iio.imread("sw.mp4", plugin="pyav").shape[2] == 96
    prompt = ("--policy", "run", "--demonstration", "sw.npz", "--option", "corner=sw")
    assert main([*CORNER, *prompt, "--output", "acted.npz"]) == 0
    assert load_episodes("acted.npz").tasks == ("acted",)


@pytest.mark.integration
def test_the_same_from_python(here, finished):
    policy = LLMDPDPolicy.from_pretrained("run/checkpoint")
    data = load_episodes("sw.npz")
    prompted = policy.prompt(trajectories=data.trajectory(0))
    observation = data.transitions["observation"][:3]
    action = prompted(observation=observation)
    tables = policy.make_tables({}, {3: [data.trajectory(0)]})
    assert tables.trajectories.task_id.tolist() == [3]
    assert action.shape == (3, 2)


@pytest.mark.integration
def test_without_environments_a_policy_is_trained(here, capsys):
    Path("plain.yaml").write_text("tasks: {ne: {data: ne.npz}, nw: {data: nw.npz}}")
    arguments = [word for word in SMALL if not word.startswith("output_dir")]
    assert main(["train-own", "tasks=plain.yaml", "output_dir=plain", *arguments]) == 0
    assert "no task has an environment; the policy is trained" in capsys.readouterr().out
    assert LLMDPDPolicy.is_saved("plain/checkpoint")
    assert Path("plain/learning_curves.png").exists()
