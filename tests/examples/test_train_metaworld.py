"""The main job as a person runs it: a command, its artefacts, its messages."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.utils.files import folder_lock

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_metaworld.py"


@pytest.fixture(scope="module")
def run(run_example):
    return functools.partial(run_example, "train_metaworld.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:  # nothing is there yet
        patch.setenv("LLMDPD_CACHE", str(folder / "cache"))
        yield folder, run(folder, "preset=smoke")


@pytest.fixture
def train_data(finished):
    """Where the run says that its training data are."""
    (line,) = (line for line in finished[1].stdout.splitlines() if line.endswith("(train)"))
    return Path(line.removeprefix("data: ").removesuffix(" (train)"))


def test_the_data_are_in_the_users_cache(finished, train_data, run, tmp_path):
    folder, process = finished
    assert train_data.parent == folder / "cache" / "data" / "metaworld"
    assert process.stdout.count("data: ") == 2  # the demonstrations lie apart
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"cache", "outputs"}
    before = {path: path.stat().st_mtime_ns for path in train_data.iterdir()}
    # From another working folder, with one task more, and one less.
    for tasks in ("[reach-v3,window-open-v3,push-v3]", "[reach-v3]"):
        again = run(tmp_path, "preset=smoke", f"tasks.train={tasks}", "until=collect")
        assert again.returncode == 0, again.stderr
        assert f"data: {train_data} (train)" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in train_data.iterdir()}
    assert {p.name for p in after.keys() - before.keys()} == {"push-v3.safetensors"}
    assert [p.name for p in before if before[p] != after[p]] == ["manifest.json"]
    # What others collected changes nothing of what a run is: it is not trained again.
    again = run(folder, "preset=smoke", "until=train")
    assert "train: reusing" in again.stdout, again.stderr


def test_all_artefacts_are_there(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    output = folder / "outputs" / "smoke-both-seed0"
    expected = {"config.yaml", "environment.json", "metrics.csv", "results.json", "results.md"}
    expected |= {"success.png", "learning_curves.png", "checkpoint", "report"}
    found = {path.name for path in output.iterdir()}
    assert expected <= found
    videos = [name for name in found if name.endswith(".mp4")]
    assert videos == ["episodes.mp4"] or "video: no pictures" in process.stdout
    assert "door-close-v3 (unseen)" in (output / "report" / "report.html").read_text()
    results = json.loads((output / "results.json").read_text())
    assert len(results["episodes"]) == 6
    assert {task: len(goals) for task, goals in results["starts"].items()} == {
        "reach-v3": 2, "window-open-v3": 2, "door-close-v3": 2,
    }  # fmt: skip
    assert results["summary"]["seen"]["episodes"] == 4
    environment = json.loads((output / "environment.json").read_text())
    assert environment["versions"]["torchrl"]
    assert environment["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    with open(output / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["20", "40", "60"]
    assert "preset_name: smoke" in (output / "config.yaml").read_text()
    assert (output / "success.png").stat().st_size > 5000
    for text in ("seen tasks", "unseen tasks", "artefacts: outputs/smoke-both-seed0"):
        assert text in process.stdout
    for bar in ("collect", "evaluate"):
        assert bar in process.stderr
    assert "Traceback" not in process.stderr


def test_the_checkpoint_loads_with_nothing_else(finished, train_data):
    folder, _ = finished
    checkpoint = folder / "outputs" / "smoke-both-seed0" / "checkpoint"
    policy = LLMDPDPolicy.from_pretrained(checkpoint)
    assert policy.info["trained_tasks"] == ["reach-v3", "window-open-v3"]
    data = TrajectoryDataset.load(train_data, ["reach-v3", "window-open-v3"]).manifest.data_hash
    assert policy.info["data_hash"] == data
    assert f"| data (SHA-256) | {data} |" in (checkpoint / "README.md").read_text()


def test_a_text_is_embedded_as_in_the_training_or_refused(finished, train_data):
    from llmdpd_torchrl.prompts import SmolLM2Encoder, load_text_prompts
    from llmdpd_torchrl.utils.errors import PromptError

    folder, _ = finished
    policy = LLMDPDPolicy.from_pretrained(folder / "outputs" / "smoke-both-seed0" / "checkpoint")
    assert policy.info["text_encoder_identity"] == SmolLM2Encoder().identity
    text = load_text_prompts()["door-lock-v3"].render()  # embedded in the package
    shown = TrajectoryDataset.load(train_data, ["reach-v3"])
    told = {"text": text, "trajectories": shown.trajectory(0)}
    assert policy.prompt(**told).embedding is not None
    policy.info["text_encoder"] = {"model": "smollm2", "layer": 7}
    with pytest.raises(PromptError, match="text encoder whose layer is 15, here it is 7"):
        policy.prompt(**told)


def test_the_saved_policy_does_again_what_it_did_in_the_run(finished, tmp_path, monkeypatch):
    from llmdpd_torchrl.commands.eval import main

    folder, process = finished
    output = folder / "outputs" / "smoke-both-seed0"
    (line,) = (line for line in process.stdout.splitlines() if line.endswith("(support)"))
    support = line.removeprefix("data: ").removesuffix(" (support)")
    monkeypatch.chdir(tmp_path)
    given = ["--episodes", "2", "--max-steps", "40", "--workers", "1", "--output", "again"]
    assert main([str(output), "--demonstration", support, *given]) == 0
    before, again = (
        [e for e in json.loads(path.read_text())["episodes"] if e["task"] == "door-close-v3"]
        for path in (output / "results.json", tmp_path / "again" / "results.json")
    )
    assert len(again) == 2
    for one, other in zip(before, again, strict=True):
        for key, value in one.items():  # rounding depends on what is computed together
            near = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            assert other[key] == near


def test_a_second_run_reuses_every_stage(finished, run):
    folder, _ = finished
    process = run(folder, "preset=smoke", "video.tasks=[]")
    assert process.returncode == 0, process.stderr
    assert "train: reusing" in process.stdout
    assert "evaluate: reusing" in process.stdout
    assert "collect" not in process.stderr


def test_a_folder_that_another_process_writes_to_is_refused(finished, run):
    folder, _ = finished
    output = folder / "outputs" / "smoke-both-seed0"
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != ".lock"}
    with folder_lock(output):
        process = run(folder, "preset=smoke", "force=[train]", "progress=false")
    assert process.returncode == 2
    environment = json.loads((output / "environment.json").read_text())
    holder = f"the process {environment['pid']} on {environment['host']}"
    assert process.stderr == (
        f"error: output_dir is outputs/smoke-both-seed0: {holder} is writing there; wait for it, "
        "or give this run another name\n"
    )
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


@pytest.mark.integration
def test_two_commands_on_one_folder(finished, run_command_of_example):
    folder, _ = finished
    shared = ("preset=smoke", "name=twice", "until=train", "progress=false")
    command = [sys.executable, str(SCRIPT), *shared, "trainer.total_updates=100000"]
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
    try:
        while not (folder / "outputs" / "twice" / "environment.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = run_command_of_example(SCRIPT.name, folder, *shared)
        assert second.returncode == 2
        assert f"output_dir is outputs/twice: the process {first.pid} on " in second.stderr
        assert second.stderr.count("\n") == 1
    finally:
        first.kill()
        first.wait()
    third = run_command_of_example(SCRIPT.name, folder, *shared)  # a crash leaves no lock
    assert third.returncode == 0, third.stderr


def test_a_folder_may_have_any_name(finished, run, monkeypatch):
    from llmdpd_torchrl.__main__ import main

    folder, _ = finished
    name = "odd/lr=1 für #1 ~a, [b]"
    given = ("preset=smoke", "video.tasks=[]", "progress=false", f'output_dir="{name}"')
    for stage in ("train", "report"):  # the second goes on with the policy of the first
        process = run(folder, *given, f"until={stage}")
        assert process.returncode == 0, process.stderr
    assert f"train: reusing {name}/checkpoint" in process.stdout
    sweep = ("-m", *given[:-1], 'output_dir="odd/a=b ü/${name}"', "until=evaluate")
    process = run(folder, *sweep, "loss.lmbda=0.1,0.2")
    assert process.returncode == 0, process.stderr
    assert len(list((folder / "odd" / "a=b ü").glob("*/results.json"))) == 2
    monkeypatch.chdir(folder)
    assert main(["report", "odd"]) == 0
    assert (folder / "odd" / "report" / "report.html").exists()


@pytest.mark.integration
def test_another_evaluation_takes_over_the_training(finished, run):
    folder, _ = finished
    process = run(
        folder, "preset=smoke", "evaluation.control=wrong", "video.tasks=[]", "progress=false"
    )
    assert process.returncode == 0, process.stderr
    assert "train: reusing outputs/smoke-both-seed0/checkpoint" in process.stdout
    other = folder / "outputs" / "smoke-both-evaluation.control_wrong-seed0"
    names = ("checkpoint/model.safetensors", "metrics.csv")
    for name in names:
        usual = folder / "outputs" / "smoke-both-seed0" / name
        assert (other / name).read_bytes() == usual.read_bytes()
    assert json.loads((other / "results.json").read_text())["control"] == "wrong"


@pytest.mark.integration
def test_a_sweep_leaves_every_run_in_its_folder(finished, run):
    folder, _ = finished
    sweep = ("preset=smoke", "until=train", "trainer.total_updates=20", "progress=false")
    process = run(folder, "-m", *sweep, "loss.lmbda=0,0.2")
    assert process.returncode == 0, process.stderr
    found = (folder / "outputs").glob("smoke-both-loss.lmbda_*/checkpoint")
    assert sorted(path.parent.name for path in found) == [
        f"smoke-both-loss.lmbda_{value}-trainer.total_updates_20-seed0" for value in ("0", "0.2")
    ]
    process = run(folder, "-m", *sweep, "loss.lmbda=0,0.3", "name=one")
    assert process.returncode == 2
    assert "another run of this sweep has written there" in process.stderr


@pytest.mark.integration
@pytest.mark.gpu
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")])
def test_a_training_is_reused_on_another_device(finished, run, tmp_path, devices):
    shared = ("preset=smoke", "progress=false", "output_dir=out", "video.tasks=[]",
              "trainer.save_every=20")  # fmt: skip
    first, second = devices
    process = run(tmp_path, *shared, f"device={first}", "until=train")
    assert process.returncode == 0, process.stderr
    process = run(tmp_path, *shared, f"device={second}")
    assert process.returncode == 0, process.stderr
    assert "train: reusing" in process.stdout  # the device is no part of what was trained
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["device"] == second


@pytest.mark.integration
@pytest.mark.parametrize("prompt", ["none", "text", "trajectory"])
def test_ablations_are_one_setting(finished, prompt, run):
    folder, _ = finished
    process = run(folder, "preset=smoke", f"prompt={prompt}", "until=train", "progress=false")
    assert process.returncode == 0, process.stderr
    policy = LLMDPDPolicy.from_pretrained(
        folder / "outputs" / f"smoke-{prompt}-seed0" / "checkpoint"
    )
    assert policy.config.prompt == prompt


@pytest.mark.integration
def test_each_run_of_a_sweep_is_a_wandb_run_and_needs_no_network(finished, run):
    folder, _ = finished
    process = run(
        folder, "-m", "preset=smoke", "seed=101,102", "trainer.total_updates=20", "logger=wandb",
        "logger.wandb_mode=offline", "until=train", "progress=false", WANDB_SILENT="true",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    outputs = folder / "outputs"
    assert len({path.read_text() for path in outputs.glob("*seed10?/wandb_id.txt")}) == 2
    assert len(list(outputs.glob("*seed10?/wandb/offline-run-*"))) == 2


@pytest.mark.integration
def test_evaluation_during_training(finished, run):
    folder, _ = finished
    process = run(
        folder, "preset=smoke", "name=during-seed0", "evaluation.every=20", "video.tasks=[]",
        "evaluation.every_episodes=1", "evaluation.confusion=1", "evaluation.workers=1",
        "tasks.held_out=[door-close-v3,push-v3]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    output = folder / "outputs" / "during-seed0"
    with open(output / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eval/success_seen"]) for row in rows] == [0.0] * 3
    assert "unseen: 0.0000" in process.stderr  # in the bar
    best = json.loads((output / "best" / "results.json").read_text())
    assert best["name"] == "during-seed0 best (online selection)"
    assert best["updates"] == 60  # of equal ones the last
    page = (output / "report" / "report.html").read_text()
    assert "during best (online selection)" in page
    assert "Tasks under others&#39; prompts" in page


@pytest.mark.integration
def test_no_gl_library_costs_only_the_video(finished, tmp_path):
    folder, _ = finished
    output = folder / "outputs" / "nogl"
    shutil.copytree(folder / "outputs" / "smoke-both-seed0", output)
    for video in output.glob("*.mp4"):
        video.unlink()
    broken = tmp_path / "OpenGL"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no GL library on this machine')")
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "preset=smoke", "name=nogl", "progress=false"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("video: ")]
    assert len(lines) == 1
    assert "libegl1" in lines[0]
    assert "train: reusing" in process.stdout
    assert not list(output.glob("*.mp4"))


def test_help_and_configuration_read_well(run, tmp_path):
    help_text = run(tmp_path, "--help").stdout
    assert help_text.startswith("Train LLM-Driven Policy Diffusion")
    for word in ("quick", "ml45", "smoke", "prompt=none", "trainer:"):
        assert word in help_text
    configuration = run(tmp_path, "--cfg", "job").stdout
    assert "preset_name: quick" in configuration
    assert "total_updates" in configuration


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks.train=[reech-v3]"], "unknown task 'reech-v3': did you mean"),
        (["tasks.train=[reach-v3,door-close-v3]"], "held-out task 'door-close-v3' is in the train"),
        (["tasks.split=nothing", "tasks.train=null"], "unknown task split 'nothing'"),
        (["evaluation.control=half"], "evaluation.control is 'half': it must be 'both'"),
        (["evaluation.demonstrations=0"], "evaluation.demonstrations is 0"),
        (["text_encoder.model=no such model"], "unknown text encoder 'no such model'"),
        (["prompt=all"], "prompt is 'all': it must be 'both'"),
        (["output_dir=/dev/null/x"], "cannot create the output folder /dev/null/x"),
        (["data.folder=/dev/null/x"], "cannot create the data folder /dev/null/x"),
        (["data.episodes_per_task=0"], "episodes_per_task is 0"),
        (["data.episodes_per_task=many"], "data.episodes_per_task is 'many'"),
        (["network.hidden=[]"], "network.hidden is []"),
        (["+network.depth=3"], "network.depth: there is no such setting"),
        (["trainer.total_updates=0"], "trainer.total_updates is 0"),
        (["loss.guidance=guess"], "loss.guidance is 'guess': it must be 'chain' or 'one_step'"),
        (["+loss.typo=1"], "typo"),
        (["logger.kind=paper"], "logger.kind is 'paper'"),
        (["evaluation.max_steps=900"], "max_steps is 900"),
        (["force=[collect]"], "force[0] is 'collect'"),
        (["until=dance"], "until is 'dance'"),
        (["network.text_dropout=1.0"], "network.text_dropout is 1.0"),
        (["video.tasks=[nothing-v3]"], "unknown task 'nothing-v3'"),
        (["evaluation.every=30"], "use a multiple of trainer.log_every, which is 20"),
        (["evaluation.confusion=-1"], "evaluation.confusion is -1"),
        (["evaluation.backend=slurm"], "use local, ray, or ray:ADDRESS"),
        (["optim.learning_rate=-1"], "learning_rate is -1"),
        (["device=cuda:99"], "device is 'cuda:99': torch sees "),
        (["+experiment=steps"], "Could not find 'experiment/steps'"),
        (["name=a=b"], "special characters need quotes inside quotes: 'name=\"...\"'"),
    ],
)
def test_mistakes_end_in_one_clear_line(finished, check_mistake, overrides, message):
    check_mistake("train_metaworld.py", overrides, message)


def damage_truncate(folder):
    path = folder / "train" / "reach-v3.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return r"reach-v3\.safetensors: damaged or cut short"


def damage_layout(folder):
    path = folder / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"size": 39', '"size": 38'))
    return r"observation has shape \(\d+, 39\), the manifest says \(\d+, 38\)"


@pytest.mark.integration
@pytest.mark.parametrize("damage", [damage_truncate, damage_layout])
def test_damaged_data_ends_in_one_clear_line(train_data, tmp_path, run, damage):
    folder = tmp_path / "data"
    shutil.copytree(train_data, folder / "train")
    message = damage(folder)
    command = [sys.executable, "-c", "import sys; from llmdpd_torchrl.data import *; from llmdpd_torchrl.utils.errors import UserError\ntry: TrajectoryDataset.load(sys.argv[1])\nexcept UserError as e: sys.exit(str(e))", str(folder / "train")]  # fmt: skip  # noqa: E501
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert re.search(message, process.stderr)
    if damage is damage_truncate:  # a changed manifest is made anew by the collection stage
        process = run(tmp_path, "preset=smoke", f"data.folder={folder}", "progress=false")
        assert process.returncode == 2
        assert re.search("error: .*" + message, process.stderr)
        assert process.stderr.count("\n") == 1
