"""The wheel holds all that its commands need; nothing of the checkout is seen."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.test_metadata import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "content")
    return folder / "content"


def llmdpd(installed, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "llmdpd_torchrl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_settings_are_in_it(installed):
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    packaged = installed / "llmdpd_torchrl"
    assert there == {str(path.relative_to(packaged)) for path in packaged.glob("configs/**/*.yaml")}
    for name in ("py.typed", "prompts/embeddings/smollm2.safetensors"):
        assert (packaged / name).is_file()
    assert not (installed / "configs").exists()


def test_it_trains_in_an_empty_folder(installed, tmp_path):
    done = llmdpd(
        installed, tmp_path, "train", "preset=smoke", "progress=false", "until=train",
        "trainer.total_updates=20", "evaluation.workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "smoke-both-trainer.total_updates_20-seed0").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_every_command_explains_itself(installed, tmp_path):
    listed = llmdpd(installed, tmp_path).stdout
    commands = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert len(commands) > 4
    for command in commands:
        done = llmdpd(installed, tmp_path, command, "--help")
        assert done.returncode == 0, done.stderr
        assert f"llmdpd {command}" in done.stdout
    assert not list(tmp_path.iterdir())
