"""Look-up order, merging, damage, and processes that share one cache."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdpd_torchrl.prompts import (
    SmolLM2Encoder,
    TextPrompt,
    cache_root,
    embed_texts,
    text_embedding_table,
)
from llmdpd_torchrl.prompts.__main__ import builtin_prompts
from llmdpd_torchrl.prompts.embedding_cache import entry_name, read_package_data
from llmdpd_torchrl.utils.errors import PromptError

WORKER = textwrap.dedent("""
    import sys, time
    import torch
    from llmdpd_torchrl.prompts import embed_texts

    class Slow:
        identity = {"model": "shared"}
        def encode(self, texts, *, progress=True):
            time.sleep(0.2)
            print("encoded", len(texts), flush=True)
            return torch.tensor([[float(t), 1.0] for t in texts])

    for text in sys.argv[2].split(","):
        table = embed_texts([text], Slow(), cache_dir=sys.argv[1])
        assert table.tolist() == [[float(text), 1.0]]
""")


def cache_file(root):
    (path,) = root.glob("*/embeddings.safetensors")
    return path


def test_only_what_is_missing_is_computed_and_order_is_kept(counting, tmp_path):
    first = embed_texts(["b", "a", "b"], counting, cache_dir=tmp_path)
    assert counting.asked == [["b", "a"]]
    second = embed_texts(["c", "b", "a"], counting, cache_dir=tmp_path)
    assert counting.asked == [["b", "a"], ["c"]]
    embed_texts(["a", "b", "c"], counting, cache_dir=tmp_path)
    assert len(counting.asked) == 2
    assert first[:, 2].tolist() == [98, 97, 98]
    assert second[:, 2].tolist() == [99, 98, 97]


def test_layout(counting, tmp_path):
    embed_texts(["a"], counting, cache_dir=tmp_path)
    path = cache_file(tmp_path)
    assert len(path.parent.name) == 16
    assert list(load_file(path)) == [entry_name(counting.identity, "a")]
    assert json.loads((path.parent / "identity.json").read_text()) == counting.identity


def test_encoders_do_not_share_entries(counting, tmp_path):
    embed_texts(["a"], counting, cache_dir=tmp_path)
    other = type(counting)("other")
    embed_texts(["a"], other, cache_dir=tmp_path)
    assert other.asked == [["a"]]
    assert entry_name(counting.identity, "a") != entry_name(other.identity, "a")


def test_the_default_root_follows_the_environment(counting, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    embed_texts(["a"], counting)
    assert cache_file(tmp_path / "own" / "embeddings").is_file()
    monkeypatch.delenv("LLMDPD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_root() == tmp_path / "shared" / "llmdpd_torchrl"


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "nan", "shape", "dtype"])
def test_a_damaged_cache_is_set_aside_named_and_rebuilt(counting, tmp_path, damage):
    expected = embed_texts(["a", "b"], counting, cache_dir=tmp_path)
    path = cache_file(tmp_path)
    entries = load_file(path)
    first = next(iter(entries))
    if damage in ("nan", "shape", "dtype"):
        wrong = {
            "nan": torch.full((3,), float("nan")),
            "shape": torch.ones(4),
            "dtype": torch.ones(3, dtype=torch.float64),
        }
        save_file(entries | {first: wrong[damage]}, path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:-5], "garbage": b"x" * 99, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="is damaged; moved to") as caught:
        again = embed_texts(["a", "b"], counting, cache_dir=tmp_path)
    assert str(path) in str(caught[0].message)
    torch.testing.assert_close(again, expected)
    assert path.with_suffix(".corrupt").is_file()
    assert len(load_file(path)) == 2


def test_an_unwritable_cache_is_reported_before_the_work(counting, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(PromptError, match="set LLMDPD_CACHE to"):
        embed_texts(["a"], counting, cache_dir=blocked)
    assert counting.asked == []


def test_an_encoder_that_breaks_its_promise(counting, tmp_path):
    counting.encode = lambda texts, progress: torch.ones(len(texts), 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"float32 \[1, D\]"):
        embed_texts(["a"], counting, cache_dir=tmp_path)


def run_workers(tmp_path, *jobs):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = tmp_path / "root"
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(root), job], stdout=subprocess.PIPE, text=True
        )
        for job in jobs
    ]
    printed = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(jobs)
    return root, "".join(printed)


def test_two_processes_lose_nothing_of_each_other(tmp_path):
    root, _ = run_workers(tmp_path, "1,2,3,4", "5,6,7,8")
    names = {entry_name({"model": "shared"}, str(text)) for text in range(1, 9)}
    assert set(load_file(cache_file(root))) == names


def test_two_processes_do_not_compute_the_same_text_twice(tmp_path):
    _, printed = run_workers(tmp_path, "1,2,3", "1,2,3")
    assert printed.count("encoded") == 3


def test_table_rows_follow_the_names():
    table = text_embedding_table(["reach-v3", "sweep-v3", "reach-v3"])
    assert table.shape == (3, 576)
    assert torch.equal(table[0], table[2])
    assert torch.equal(table[1], text_embedding_table(["sweep-v3"])[0])
    assert not torch.equal(table[1], text_embedding_table(["sweep-v3"], variant=0)[0])


def test_table_of_own_prompts(counting, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    prompts = {"mine": TextPrompt("mine", "A.", "B.", "C.", "D.", "E.", ("P.",))}
    text_embedding_table(["mine"], counting, prompts)
    text_embedding_table(["mine"], counting, prompts, variant=0)
    assert counting.asked == [[prompts["mine"].render()], ["P."]]
    with pytest.raises(PromptError, match="no text prompt for the task 'reach-v3'"):
        text_embedding_table(["reach-v3"], counting, prompts)


def test_package_data_covers_every_builtin_text():
    """After an edit of the YAML, run ``python -m llmdpd_torchrl.prompts embed --builtin``."""
    identity = SmolLM2Encoder().identity
    names = {
        entry_name(identity, text)
        for prompt in builtin_prompts()
        for text in (prompt.render(), *prompt.paraphrases)
    }
    assert set(read_package_data(identity)) == names


def test_builtin_prompts_need_neither_model_nor_cache(tmp_path):
    code = textwrap.dedent("""
        import sys
        for name in ("transformers", "gguf", "huggingface_hub"):
            sys.modules[name] = None  # importing it raises ImportError
        from llmdpd_torchrl.prompts import load_text_prompts, text_embedding_table
        tasks = list(load_text_prompts())
        for variant in (None, 0, 1, 2):
            assert text_embedding_table(tasks, variant=variant).shape == (50, 576)
        assert "tokenizers" not in sys.modules
    """)
    absent = tmp_path / "cache"
    environment = {"LLMDPD_CACHE": str(absent), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not absent.exists()


def test_an_unknown_encoder_fails_before_any_work(tmp_path):
    with pytest.raises(PromptError, match="unknown text encoder 'smolm2'"):
        embed_texts(["open the door"], "smolm2", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
