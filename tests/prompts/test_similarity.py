"""What the shipped embeddings know: families of tasks, and paraphrases without shared words."""

from __future__ import annotations

import pytest
import torch

from llmdpd_torchrl.prompts import (
    centred_similarity,
    load_text_prompts,
    nearest_tasks,
    text_embedding_table,
)

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
