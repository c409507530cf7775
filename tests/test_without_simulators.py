"""Where neither Meta-World nor MuJoCo is installed, all that needs no simulator works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld

ROOT = Path(__file__).parents[1]
BLOCK = "import sys; sys.modules.update(metaworld=None, mujoco=None)\n"
REMEDY = 'pip install "llmdpd_torchrl[metaworld]"'


def run(code, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_can_be_imported(tmp_path):
    code = """
import importlib, pkgutil, llmdpd_torchrl
for module in pkgutil.walk_packages(llmdpd_torchrl.__path__, "llmdpd_torchrl."):
    importlib.import_module(module.name)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_needs_one_says_so_in_one_line(tmp_path):
    code = """
from llmdpd_torchrl.collection.halfcheetah import collect_gait
from llmdpd_torchrl.collection.metaworld import collect_metaworld
from llmdpd_torchrl.envs import GymMujocoEnv, HalfCheetahVelocityEnv, MetaWorldEnv
from llmdpd_torchrl.evaluation import Evaluator
from llmdpd_torchrl.utils.errors import ConfigError
for call in (
    lambda: MetaWorldEnv("reach-v3"),
    lambda: GymMujocoEnv("Hopper-v4"),
    lambda: HalfCheetahVelocityEnv(1.0),
    lambda: Evaluator(["reach-v3"]),
    lambda: collect_metaworld("data", ["reach-v3"], progress=False),
    lambda: collect_gait("gait.hdf5", episodes=1, progress=False),
):
    try:
        call()
    except ConfigError as error:
        print(error)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(REMEDY) for line in lines)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["train", "train_d4rl"])
def test_a_run_that_evaluates_ends_before_any_work(tmp_path, command):
    code = f"""
from llmdpd_torchrl.commands.{command} import main
sys.exit(main(["preset=smoke", "output_dir=out", "progress=false"]))
"""
    done = run(code, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: an evaluation (until=train does without) needs the package")
    assert line.endswith(REMEDY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_training_on_data_that_are_there(tmp_path):
    settings = {"episodes_per_task": 4, "noise_levels": [0.0, 0.1], "max_steps": 60}
    for seed, name, tasks in ((0, "train", ["reach-v3"]), (1, "support", ["door-close-v3"])):
        made = CollectionSettings(**settings, seed=seed, steps_after_success=30)
        collect_metaworld(tmp_path / "data" / name, tasks, made, workers=1, progress=False)
    overrides = [f"data.{key}={value}" for key, value in settings.items()]
    overrides += ["data.folder=data", "data.support_episodes=4", "tasks.train=[reach-v3]"]
    overrides += ["preset=smoke", "output_dir=out", "progress=false", "until=train"]
    overrides += ["trainer.total_updates=20"]
    code = "from llmdpd_torchrl.commands.train import main\nsys.exit(main(sys.argv[1:]))"
    done = run(code, tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").is_file()
    versions = json.loads((tmp_path / "out" / "environment.json").read_text())["versions"]
    assert versions["torch"]


@pytest.mark.integration
def test_the_documentations_examples_are_skipped_not_failed(tmp_path):
    (tmp_path / "without_simulators.py").write_text(BLOCK)
    code = f"""
import pytest
sys.path.append({str(tmp_path)!r})
arguments = ["-p", "without_simulators", "-p", "no:cacheprovider", "-rs", "llmdpd_torchrl"]
sys.exit(pytest.main(arguments))
"""
    done = run(code, ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "the simulator of reach-v3 needs the package metaworld" in done.stdout
