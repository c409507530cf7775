"""The cache: order, merging, damage, shared by processes; and what the embeddings encode."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdpd_torchrl.commands.prompts import builtin_prompts
from llmdpd_torchrl.prompts import (
    SmolLM2Encoder,
    TextPrompt,
    centred_similarity,
    embed_texts,
    load_text_prompts,
    nearest_tasks,
    text_embedding_table,
    wordings_table,
)
from llmdpd_torchrl.prompts.embedding_cache import entry_name, mean_name, read_package_data
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


def test_the_default_is_in_the_users_cache(counting, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "own"))
    embed_texts(["a"], counting)
    assert cache_file(tmp_path / "own" / "embeddings").is_file()


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


@pytest.mark.integration
def test_two_processes_lose_nothing_of_each_other(tmp_path):
    root, _ = run_workers(tmp_path, "1,2,3,4", "5,6,7,8")
    names = {entry_name({"model": "shared"}, str(text)) for text in range(1, 9)}
    assert set(load_file(cache_file(root))) == names


@pytest.mark.integration
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
    """After an edit of the YAML, run ``llmdpd prompts embed --builtin``."""
    identity = SmolLM2Encoder().identity
    names = {
        entry_name(identity, text)
        for prompt in builtin_prompts()
        for text in (prompt.render(), *prompt.paraphrases)
    }
    names |= {mean_name(identity, p.wordings) for p in builtin_prompts() if p.wordings}
    assert set(read_package_data(identity)) == names


def test_means_of_wordings(counting, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    parts = ("A.", "B.", "C.", "D.", "E.")
    prompts = {
        "one": TextPrompt("one", *parts, wordings=("x y", "y z")),
        "two": TextPrompt("two", *parts, wordings=("z x",)),
        "none": TextPrompt("none", *parts),
    }
    found = wordings_table(["two", "one"], counting, prompts)
    rows = embed_texts(["z x", "x y", "y z"], counting)
    torch.testing.assert_close(found, torch.stack([rows[0], rows[1:].mean(0)]))
    assert wordings_table(["one", "none"], counting, prompts) is None


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


FAMILIES = [
    "button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button",
    "coffee-pull coffee-push",
    "door-close door-open",
    "door-lock door-unlock",
    "drawer-close drawer-open",
    "faucet-open faucet-close",
    "handle-press handle-press-side handle-pull handle-pull-side lever-pull",
    "plate-slide plate-slide-side plate-slide-back plate-slide-back-side",
    "push push-wall push-back sweep sweep-into",
    "reach reach-wall",
    "stick-push stick-pull",
    "window-open window-close",
    "peg-insert-side peg-unplug-side",
    "assembly disassemble",
    "pick-place pick-place-wall pick-out-of-hole shelf-place",
]
OPPOSITES = ["door-lock door-unlock", "window-open window-close", "faucet-open faucet-close"]


@pytest.fixture(scope="module")
def names():
    return list(load_text_prompts())


def test_embeddings_are_finite_and_distinct(names):
    table = torch.cat([text_embedding_table(names, variant=v) for v in (None, 0, 1, 2)])
    assert table.isfinite().all()
    distance = torch.cdist(table, table) + 1e9 * torch.eye(len(table))
    assert distance.min() > 1


def test_same_family_tasks_are_more_alike():
    tasks = [f"{name}-v3" for family in FAMILIES for name in family.split()]
    family = torch.tensor([i for i, f in enumerate(FAMILIES) for _ in f.split()])
    table = text_embedding_table(tasks)
    pairs = torch.triu(torch.ones(len(tasks), len(tasks), dtype=torch.bool), diagonal=1)
    same = (family[:, None] == family) & pairs
    other = (family[:, None] != family) & pairs
    similarity = centred_similarity(table, table)
    auc = (similarity[same][:, None] > similarity[other]).float().mean().item()
    print(f"same-family AUC {auc:.3f}")
    assert auc > 0.9
    # Without centring every two tasks look the same.
    raw = torch.nn.functional.normalize(table, dim=1)
    assert (raw @ raw.T).min() > 0.9


def test_paraphrases_find_their_prompt(names):
    table = text_embedding_table(names)
    free = torch.stack([text_embedding_table(names, variant=v) for v in range(3)])
    target = torch.arange(len(names)).expand(3, -1)

    def at(k, mean):
        found = centred_similarity(free.flatten(0, 1), table, mean).topk(k).indices
        return (found == target.flatten()[:, None]).any(1).float().mean().item()

    own = free.flatten(0, 1).mean(0)
    print(f"paraphrase -> prompt @1 {at(1, own):.3f}, @5 {at(5, own):.3f} (own mean)")
    print(f"paraphrase -> prompt @1 {at(1, None):.3f}, @5 {at(5, None):.3f} (prompts' mean)")
    assert at(1, own) > 0.25  # chance is 0.02, word overlap (TF-IDF) gives 0.03
    assert at(5, own) > 0.5
    assert at(1, None) > 0.1


@pytest.mark.parametrize("pair", OPPOSITES)
def test_opposites_lie_close_and_still_apart(names, pair):
    table = text_embedding_table(names)
    a, b = (names.index(f"{name}-v3") for name in pair.split())
    similarity = centred_similarity(table, table)[a, b]
    assert 0.3 < similarity < 0.97


def test_centred_similarity_by_hand():
    references = torch.tensor(
        [[3.0, 0.0], [1.0, 2.0], [5.0, 1.0]]
    )  # the first two have mean (2, 1)
    similarity = centred_similarity(torch.tensor([[2.0, 2.0]]), references[:2])
    # The query is (0, 1) off the mean, the references (1, -1) and (-1, 1).
    torch.testing.assert_close(similarity, torch.tensor([[-(0.5**0.5), 0.5**0.5]]))
    shifted = centred_similarity(references + 7, references, query_mean=references.mean(0) + 7)
    torch.testing.assert_close(shifted, centred_similarity(references, references))


def test_nearest_tasks_of_a_paraphrase_and_count():
    text = load_text_prompts()["soccer-v3"].paraphrases[0]
    found = nearest_tasks(text, count=3)
    assert len(found) == 3
    assert found[0][0] == "soccer-v3"
    assert found[0][1] >= found[1][1] >= found[2][1]
