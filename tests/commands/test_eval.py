"""``llmdpd eval``: tasks, texts and demonstrations of the user's reach a saved policy."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdpd_torchrl.collection.halfcheetah import collect_gait
from llmdpd_torchrl.commands import eval as commands_eval
from llmdpd_torchrl.commands import report
from llmdpd_torchrl.commands.eval import main
from llmdpd_torchrl.evaluation import evaluator
from llmdpd_torchrl.evaluation.controls import random_strings
from llmdpd_torchrl.experiments.locomotion import read_speeds, speed_protocol
from llmdpd_torchrl.prompts import load_text_prompts
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import file_sha256

SHORT = ["--episodes", "2", "--max-steps", "5", "--workers", "1", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("here", "one_worker")


@pytest.fixture
def data(dataset_folder):
    """Folder of the collected episodes of reach-v3 and window-open-v3."""
    return str(dataset_folder)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def error_of(capsys, *arguments):
    """The one line of a mistake."""
    assert main([*arguments, *SHORT]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if "error: " in line]
    return line


def test_the_held_out_task_with_its_built_in_text_and_a_demonstration(
    make_policy, data, here, capsys
):
    assert main([make_policy("both"), "--demonstration", data, *SHORT]) == 0
    said = capsys.readouterr().out
    assert "demonstration of window-open-v3: episode 0 of 3 episodes" in said
    assert "the first successful one" in said
    found = results(here / "evaluation-run-seed3")
    assert [(e["task"], e["goal_index"]) for e in found["episodes"]] == [
        ("window-open-v3", 0),
        ("window-open-v3", 1),
    ]
    assert found["seed"] == 3
    assert "Task: " in found["texts"]["window-open-v3"]
    assert (here / "evaluation-run-seed3" / "results.md").exists()


def test_another_evaluation_is_not_overwritten_and_all_are_reported(make_policy, here, capsys):
    policy = make_policy("none")
    for seed in ("0", "1"):
        assert main([policy, "--tasks", "reach-v3", "--seed", seed, *SHORT]) == 0
    assert {path.name for path in here.iterdir()} == {
        "evaluation-run-seed3",
        "evaluation-run-seed3-2",
    }
    assert report.main([str(here)]) == 0
    line = error_of(capsys, policy, "--output", "evaluation-run-seed3")
    assert "results of another evaluation" in line


def built_in(task):
    """Words whose embedding comes with the package; any other needs the language model."""
    return load_text_prompts()[task].render()


def test_a_policy_of_random_letters_reads_its_letters_again(make_policy, here, monkeypatch):
    read = []

    def embed(texts, info, width):
        read.extend(texts)
        return torch.zeros(len(texts), width)

    monkeypatch.setattr("llmdpd_torchrl.policies.pretrained.embed_prompts", embed)
    folder = make_policy("text", {"texts": "random"})
    assert main([folder, "--tasks", "reach-v3", *SHORT]) == 0
    words = [load_text_prompts()[name].render() for name in METAWORLD_TASKS.names]
    letters = random_strings(words)[METAWORLD_TASKS.index("reach-v3")]
    assert read == [letters]
    assert results(here / "evaluation-run-seed3")["texts"] == {"reach-v3": letters}
    assert main([folder, "--tasks", "reach-v3", "--text", "Go.", *SHORT]) == 0
    assert read[1:] == ["Go."]


def test_own_words_change_what_the_policy_does(make_policy, here):
    folder = make_policy("text")
    given = {"own": ["--text", built_in("door-lock-v3")], "default": []}
    for name, text in given.items():
        options = ["--tasks", "reach-v3", "--output", name, "--acting", "deterministic"]
        assert main([folder, *options, *text, *SHORT]) == 0
    own, default = (results(here / name) for name in given)
    assert own["texts"] == {"reach-v3": built_in("door-lock-v3")}
    assert own["episodes"][0]["episode_return"] != default["episodes"][0]["episode_return"]


def test_a_demonstration_of_ones_own_changes_what_the_policy_does(make_policy, data, here, capsys):
    folder = make_policy("trajectory", trained_task_ids=[])
    returns = []
    for number, file in enumerate(("reach-v3", "window-open-v3")):
        given = ["--demonstration", f"{data}/{file}.safetensors", "--episode", "1"]
        options = ["--tasks", "door-lock-v3", "--output", str(number)]
        assert main([folder, *options, *given, *SHORT]) == 0
        returns.append(results(here / str(number))["episodes"][0]["episode_return"])
        assert f"episode 1 of 3 episodes of {file} in" in capsys.readouterr().out
    assert returns[0] != returns[1]


def test_of_several_demonstrations_all_are_read(make_policy, data, here, capsys):
    files = [f"{data}/{task}.safetensors" for task in ("reach-v3", "window-open-v3")]
    given = [item for file in files for item in ("--demonstration", file)]
    options = ["--tasks", "door-lock-v3"]
    assert main([make_policy("trajectory"), *options, *given, *SHORT]) == 0
    assert len(results(here / "evaluation-run-seed3")["demonstrations"]) == 2
    pooled = make_policy("trajectory", name="pooled", conditioning="pooled")
    assert "reads one demonstration" in error_of(capsys, pooled, *options, *given)


def test_a_folder_that_another_evaluation_just_made_is_left_to_it(make_policy, here, monkeypatch):
    taken = here / "evaluation-run-seed3"
    monkeypatch.setattr(commands_eval, "free_path", _after(commands_eval.free_path, taken.mkdir))
    assert main([make_policy("none"), *SHORT]) == 0
    assert list(taken.iterdir()) == []
    assert (here / "evaluation-run-seed3-2" / "results.json").exists()


def _after(choose, race):
    """``choose``, whose first choice another process takes before it is used."""
    races = [race]

    def chosen(*arguments):
        path = choose(*arguments)
        if races:
            races.pop()()
        return path

    return chosen


def test_a_failed_evaluation_leaves_the_folder_that_others_write_to(make_policy, here, monkeypatch):
    def fail(self, policy, tables):
        for folder in here.iterdir():
            (folder / "theirs.txt").write_text("")
        raise ConfigError("no")

    monkeypatch.setattr(evaluator.Evaluator, "__call__", fail)
    assert main([make_policy("none"), *SHORT]) == 2
    assert (here / "evaluation-run-seed3" / "theirs.txt").exists()


def test_each_of_several_tasks_takes_its_own_demonstration(make_policy, data, here, capsys):
    folder = make_policy("trajectory")
    tasks = ["--tasks", "window-open-v3", "reach-v3"]
    assert main([folder, *tasks, "--demonstration", data, *SHORT]) == 0
    found = results(here / "evaluation-run-seed3")
    assert [line.split(":")[0] for line in found["demonstrations"]] == [
        "demonstration of window-open-v3",
        "demonstration of reach-v3",
    ]
    seen = {task["task"]: task["seen"] for task in found["summary"]["tasks"]}
    assert seen == {"reach-v3": True, "window-open-v3": False}
    one = ["--demonstration", f"{data}/reach-v3.safetensors"]
    assert "no demonstration of window-open-v3" in error_of(capsys, folder, *tasks, *one)


def test_a_text_file_has_a_text_for_each_task(make_policy, here, tmp_path, capsys):
    fields = "".join(f"    {name}: {name}\n" for name in ("robot", "constraints", "success"))
    file = tmp_path / "mine.yaml"
    file.write_text(f"tasks:\n  reach-v3:\n    task: Go.\n    objective: There.\n{fields}")
    line = error_of(capsys, make_policy("text"), "--text-file", str(file))
    assert "has no task 'window-open-v3'" in line


def test_speeds_are_scored_by_the_returns_in_the_recorded_file(make_policy, here, tmp_path):
    path = collect_gait(tmp_path / "gait.hdf5", episodes=1, progress=False)
    protocol = speed_protocol(*read_speeds(path))
    info = {
        "task_table": list(protocol.split.table.names),
        "trained_tasks": list(protocol.split.train),
        "held_out_tasks": list(protocol.split.held_out),
    }
    sizes = {
        "observation_fields": {"state": [0, 17]}, "observation_keep": ["state"], "action_dim": 6,
        "conditioning": "pooled", "trajectory_width": 8, "trajectory_heads": 2,
        "trained_task_ids": [0],
    }  # fmt: skip
    folder = make_policy("both", info, **sizes)
    assert main([folder, "--demonstration", str(path), *SHORT]) == 0
    found = results(here / "evaluation-run-seed3")
    assert {e["task"] for e in found["episodes"]} == set(protocol.split.held_out)
    assert all(episode["score"] is not None for episode in found["episodes"])
    alone = make_policy(
        "none",
        {"variants": protocol.variants, "references": protocol.references, **info},
        name="alone",
        **sizes,
    )
    assert main([alone, "--tasks", "halfcheetah-vel-2", *SHORT]) == 0
    assert main([alone, "--tasks", "HalfCheetah-v4", *SHORT]) == 0


def test_episodes_that_crash_are_told_by_the_exit_code(make_policy, here, tmp_path, capsys):
    folder = tmp_path / "runs" / "run-seed3" / "checkpoint"
    policy = make_policy("none")
    weights = load_file(folder / "model.safetensors")
    last = [name for name in weights if name.startswith("actor.") and name.endswith("bias")][-1]
    weights[last][:] = float("nan")
    save_file(weights, folder / "model.safetensors")
    description = json.loads((folder / "config.json").read_text())
    description["weights"]["sha256"] = file_sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description))
    assert main([policy, *SHORT]) == 1
    assert "2 of 2 episodes crashed" in capsys.readouterr().err
    assert results(here / "evaluation-run-seed3")["summary"]["tasks"][0]["errors"] == 2


def test_missing_and_unread_prompts_name_the_option(make_policy, data, capsys):
    both, text, none = (make_policy(prompt, name=prompt) for prompt in ("both", "text", "none"))
    assert "--demonstration FILE" in error_of(capsys, both)
    assert "reads no demonstration" in error_of(capsys, text, "--demonstration", data)
    assert "reads no text" in error_of(capsys, none, "--text", "Go.")
    assert "--text is empty" in error_of(capsys, text, "--text", "  ")
    assert "leave one out" in error_of(capsys, text, "--text", "Go.", "--text-file", "a.yaml")
    silent = make_policy("none", {"trained_tasks": [], "held_out_tasks": []}, name="silent",
                         trained_task_ids=[])  # fmt: skip
    assert "name some with --tasks" in error_of(capsys, silent)


def test_a_text_is_for_tasks_that_are_named(make_policy, here, capsys):
    folder = make_policy("text", {"held_out_tasks": ["door-lock-v3", "door-open-v3"]})
    text = ["--text", built_in("door-lock-v3")]
    assert "--text is the text of one task" in error_of(capsys, folder, *text)
    assert main([folder, *text, "--tasks", "door-lock-v3", "door-open-v3", *SHORT]) == 0


def test_wrong_tasks_are_one_line(make_policy, here, capsys):
    folder = make_policy("none")
    assert "did you mean reach-v3" in error_of(capsys, folder, "--tasks", "reach-v9")
    assert "one family at a time" in error_of(capsys, folder, "--tasks", "reach-v3", "Hopper-v4")
    assert "which returns score" in error_of(capsys, folder, "--tasks", "halfcheetah-vel-9")
    line = error_of(capsys, folder, "--tasks", "Hopper-v4")
    assert "11 observation and 3 action entries, the policy reads 39 and writes 4" in line
    assert list(here.iterdir()) == []


def test_wrong_demonstrations_are_one_line(make_policy, data, tmp_path, capsys):
    folder = make_policy("trajectory")
    arrays = {
        "observations": np.zeros((4, 39), "f4"), "actions": np.zeros((4, 4), "f4"),
        "rewards": np.ones(4, "f4"), "terminals": np.zeros(4, bool),
        "timeouts": np.array([0, 0, 0, 1], bool),
    }  # fmt: skip

    def recorded(**changes):
        path = tmp_path / "demo.hdf5"
        with h5py.File(path, "w") as file:
            for key, value in {**arrays, **changes}.items():
                file[key] = value
        return ["--tasks", "reach-v3", "--demonstration", str(path)]

    line = error_of(capsys, folder, *recorded(observations=np.zeros((4, 11), "f4")))
    assert "shape [3, 11] as observation: the policy was trained with [T, 39]" in line
    actions = arrays["actions"].copy()
    actions[2] = np.nan
    assert "finite" in error_of(capsys, folder, *recorded(actions=actions))
    assert "numbered from 0" in error_of(capsys, folder, *recorded(), "--episode", "9")
    file = recorded()[-1]
    line = error_of(capsys, folder, "--demonstration", file)
    assert "unknown task 'demo'" in line
    assert "name the task with --tasks, such as --tasks door-lock-v3" in line
    assert "none of door-lock-v3" in error_of(
        capsys, folder, "--tasks", "door-lock-v3", "--demonstration", data
    )
    assert "nowhere" in error_of(capsys, folder, "--demonstration", "nowhere.hdf5")
    flags = arrays.pop("timeouts")
    assert main([folder, *recorded()]) == 2
    assert "--max-steps" in capsys.readouterr().err
    assert main([folder, *recorded(), *SHORT, "--max-steps", "4"]) == 0
    arrays["timeouts"] = flags
    assert main([folder, *recorded(), *SHORT]) == 0  # without flags: that of highest return
    assert "the one of highest return" in capsys.readouterr().out


def test_what_is_no_policy_is_one_line(data, tmp_path, capsys):
    assert "no policy in nowhere" in error_of(capsys, "nowhere")
    assert "no policy in" in error_of(capsys, data)


@pytest.mark.integration
def test_as_a_command(make_policy, here):
    command = [sys.executable, "-m", "llmdpd_torchrl", "eval", make_policy("none"), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "results: evaluation-run-seed3" in done.stdout
