import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmdpd_torchrl.trainers.ranks import (
    Ranks,
    all_ranks,
    average,
    barrier,
    first_rank_first,
    join_ranks,
    ranks,
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(number, *arguments, **options):
    command = [*TORCHRUN, str(number), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, check=True, timeout=600, **options)


def test_a_process_alone_waits_for_nobody():
    assert ranks() == Ranks(0, 1)
    assert Ranks(0, 2).seed(7) == 7
    assert Ranks(1, 2).seed(7) != 7
    with join_ranks(torch.device("cpu")) as mine, first_rank_first():
        assert mine.is_first
    barrier()
    assert all_ranks("one") == ["one"]
    value = torch.tensor([1.0, 2.0])
    average([value])
    assert value.tolist() == [1.0, 2.0]


def test_two_ranks_of_half_batches_train_as_one_of_whole_ones(tmp_path):
    script = Path(__file__).with_name("train_on_ranks.py")
    torchrun(2, script, tmp_path, 32)
    torchrun(1, script, tmp_path, 32)
    first, second, alone = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("2-0", "2-1", "1-0")
    )
    assert any(key.startswith("target_actor") for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)


def test_ranks_that_cannot_share_a_batch(tmp_path):
    arguments = ["-m", "llmdpd_torchrl", "train", "preset=smoke", "optim.batch_size=33"]
    command = [*TORCHRUN, "2", *arguments, f"output_dir={tmp_path}"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode
    assert "optim.batch_size is 33: 2 ranks cannot share it evenly" in done.stderr


@pytest.mark.integration
def test_killed_ranks_resume_exactly(tmp_path):
    settings = ["preset=smoke", "until=train", "trainer.total_updates=120", "progress=false"]
    settings += ["trainer.save_every=20", "evaluation.every=0"]
    arguments = ["-m", "llmdpd_torchrl", "train", *settings]
    torchrun(2, *arguments, f"output_dir={tmp_path / 'whole'}")
    killed = subprocess.Popen(
        [*TORCHRUN, "2", *arguments, f"output_dir={tmp_path / 'killed'}"], env=ENVIRONMENT
    )
    states = tmp_path / "killed" / "training"
    while not any(states.glob("*/rank-1/checkpoint-*40")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()  # and its processes with it
    killed.wait()
    subprocess.run(["pkill", "-9", "-f", str(tmp_path / "killed")], check=False)
    again = torchrun(
        2, *arguments, f"output_dir={tmp_path / 'killed'}", capture_output=True, text=True
    )
    assert "resuming at update" in again.stdout
    whole, resumed = (
        load_file(next((tmp_path / name / "checkpoint").glob("*.safetensors")))
        for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not states.exists()
