"""Our parts in TorchRL's places, and TorchRL's in ours."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrl.envs import ActionScaling, GymEnv, TransformedEnv

SCRIPT = Path(__file__).parents[2] / "examples" / "compose_with_torchrl.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("compose_with_torchrl", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def env():
    torch.manual_seed(0)
    return TransformedEnv(GymEnv("Pendulum-v1"), ActionScaling())


def test_our_actor_learns_under_torchrls_loss(example, env):
    losses = example.ours_in_torchrl(env)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_torchrls_actor_learns_under_our_loss(example, env, monkeypatch):
    made = []

    class Recording(example.TorchRLDiffusionActor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append([parameter.detach().clone() for parameter in self.parameters()])

    monkeypatch.setattr(example, "TorchRLDiffusionActor", Recording)
    actor = example.torchrl_in_ours(env)
    # The actor that collects is the one that was trained, and not a copy of it.
    assert len(made) == 1
    for before, after in zip(made[0], actor.parameters(), strict=True):
        assert not torch.equal(before, after)
    assert torch.isfinite(env.rollout(5, actor)["action"]).all()


@pytest.mark.integration
def test_the_script_runs_as_it_is(tmp_path):
    process = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "our actor, TorchRL's loss" in process.stdout
    assert "TorchRL's actor, our loss" in process.stdout
    assert len(SCRIPT.read_text().splitlines()) < 80
