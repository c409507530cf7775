"""A disk that is full while a run saves: one line, nothing half-written, and the rerun succeeds."""

import json
import shutil

import numpy as np
import pytest

from llmdpd_torchrl.evaluation import results as report
from llmdpd_torchrl.experiments import metaworld
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers.loggers import write_mp4
from llmdpd_torchrl.utils.errors import DISK_ERRORS
from tests.reliability import entries
from tests.reliability.harness import small_files

pytestmark = pytest.mark.integration

SLOW = pytest.mark.slow  # it starts processes that import the simulator
TINY = (
    "preset=smoke", "prompt=both", "network.hidden=[8]", "trainer.total_updates=20",
    "tasks.train=[reach-v3]", "tasks.held_out=[]", "data.episodes_per_task=2",
    "evaluation.episodes_per_task=1", "evaluation.max_steps=5", "evaluation.workers=1",
)  # fmt: skip


def run(folder, until):
    settings = (f"output_dir={folder}/out", f"data.folder={folder}/data", f"until={until}")
    return entries.call("train", [*TINY, *settings])


def artefacts(folder, until):
    """What a run leaves up to a stage, without what names its folder."""
    found = {path.name: path.read_bytes() for path in (folder / "data" / "train").glob("*.*")}
    if until != "collect":
        for name in ("metrics.csv", "checkpoint/model.safetensors", "checkpoint/config.json"):
            found[name] = (folder / "out" / name).read_bytes()
    if until == "evaluate":
        results = json.loads((folder / "out" / "results.json").read_text())
        found |= {key: results[key] for key in ("summary", "episodes", "starts")}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that had room, up to the training."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run(folder, "train")
    assert outcome.code == 0, outcome.text
    return folder


@pytest.mark.parametrize(
    ("owner", "function", "until", "file"),
    [
        (LLMDPDPolicy, "save_pretrained", "train", "out/checkpoint/model.safetensors"),
        pytest.param(metaworld, "collect_metaworld", "collect", "data/train/", marks=SLOW),
        pytest.param(report, "write_results_json", "evaluate", "out/results.json", marks=SLOW),
    ],
)
def test_one_line_and_a_second_try(whole, tmp_path, monkeypatch, owner, function, until, file):
    if until != "collect":
        shutil.copytree(whole / "data", tmp_path / "data")
    save = getattr(owner, function)

    def save_on_a_full_disk(*args, **options):
        with small_files(200):
            return save(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, function, save_on_a_full_disk)
        outcome = run(tmp_path, until)
    assert outcome.code == 2
    assert outcome.is_clear, outcome.text
    (line,) = outcome.error_lines
    assert line.startswith(f"error: cannot write {tmp_path / file}")
    assert line.endswith("(File too large): make room, then run the same command again")
    assert not list(tmp_path.rglob("*.tmp*"))
    assert not (tmp_path / file).is_file()
    for folder in (tmp_path, whole):
        again = run(folder, until)
        assert again.code == 0, again.text
    assert artefacts(tmp_path, until) == artefacts(whole, until)


@pytest.mark.parametrize("most", [0, 2000])
@pytest.mark.parametrize("count", [2, 60])
def test_a_video_is_complete_or_not_there(tmp_path, count, most):
    noise = np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    path = tmp_path / "video.mp4"
    with small_files(most), pytest.raises(OSError, match=r"video\.mp4") as failed:
        write_mp4(path, noise, fps=10)
    assert failed.value.errno in DISK_ERRORS
    assert not list(tmp_path.iterdir())
    write_mp4(path, noise, fps=10)
    assert path.exists()
