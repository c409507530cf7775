"""What a text encoder makes of the tasks' prompts: a table of encoders and of controls.

Every paraphrase of the 50 Meta-World tasks avoids the words of its prompt. An encoder that carries
meaning still finds the prompt that it belongs to: ``paraphrase_at_1`` and ``_at_5``, the share of
paraphrases whose own prompt is nearest, or among the five nearest, of all 50 (chance is 2 % and
10 %). ``opposites_cosine`` is the mean similarity of prompts such as *lock* and *unlock the door*,
which a policy must tell apart. ``cold_50_s`` and ``warm_50_s`` are the seconds that 50 new prompts
take, fetch and conversion of the model included, and again from the cache. Controls: TF-IDF, which
knows words only; SmolLM2 with random weights; and SmolLM2 on random strings as long as the texts.

With ``policies``: the same similarity after the text head of each trained policy, for the pairs
of its training tasks and for the others.

    python -m benchmarks.studies text_encoders
    python -m benchmarks.studies text_encoders 'also=["minilm=minilm", "t5=FOLDER:layer=last"]'
    python -m benchmarks.studies text_encoders 'policies=[outputs/ml45-pooled-seed0/checkpoint]'
    python -m benchmarks.studies --check text_encoders    # two rows measured again
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.common import RESULTS, check_figures, write_figures
from llmdpd_torchrl.evaluation.controls import random_strings
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import (
    HuggingFaceEncoder,
    centred_similarity,
    embed_texts,
    load_text_prompts,
    make_text_encoder,
)
from llmdpd_torchrl.prompts.model_files import smollm2_folder
from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import write_text

OPPOSITES = (
    ("door-lock-v3", "door-unlock-v3"),
    ("door-open-v3", "door-close-v3"),
    ("drawer-open-v3", "drawer-close-v3"),
    ("faucet-open-v3", "faucet-close-v3"),
    ("window-open-v3", "window-close-v3"),
)
Embed = Callable[[Sequence[str]], Tensor]
#: The check measures two encoders again.
MEASURES_AGAIN = True


@dataclass
class Options:
    """More encoders, and trained policies; what was measured of others before is left as it is.

    Attributes:
        also: ``NAME=MODEL[:OPTION=VALUE...]``, a Hub id or a folder, and options of
            ``HuggingFaceEncoder``.
        policies: folders of policies that read a text.
    """

    also: Sequence[str] = ()
    policies: Sequence[str] = ()


def by_name(name: str | Mapping[str, Any]) -> Embed:
    """An encoder of the library, through its cache."""
    return lambda texts: embed_texts(texts, make_text_encoder(name))


def tf_idf(texts: Sequence[str]) -> Tensor:
    """Counts of words, weighted by how few of the texts have them."""
    counts = [Counter(re.findall(r"[a-z]+", text.lower())) for text in texts]
    in_texts = Counter(word for count in counts for word in count)
    words = sorted(in_texts)
    rows = [
        [count[word] * math.log(len(texts) / in_texts[word]) for word in words] for count in counts
    ]
    return torch.tensor(rows)


def untrained(texts: Sequence[str]) -> Tensor:
    """SmolLM2's architecture and tokenizer with random weights."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_config(AutoConfig.from_pretrained(smollm2_folder())).save_pretrained(folder)
        AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)
        return HuggingFaceEncoder(folder, layer=15, device="cpu").encode(texts)


def random_letters(texts: Sequence[str]) -> Tensor:
    """SmolLM2 on random strings instead of the texts."""
    return make_text_encoder("smollm2").encode(random_strings(texts))


def encoders(more: Sequence[str]) -> dict[str, Embed]:
    """Rows of the table."""
    found: dict[str, Embed] = {
        "smollm2": by_name("smollm2"),
        "smollm2_last_token": by_name({"model": "smollm2", "pooling": "last_token"}),
        "smollm2_4_layers": by_name({"model": "smollm2", "layers": 4}),
        "smollm2_with_first_token": by_name({"model": "smollm2", "skip_first": False}),
    }
    for entry in more:
        name, _, text = entry.partition("=")
        model, *options = text.split(":")
        settings = {key: yaml.safe_load(value) for key, value in (o.split("=") for o in options)}
        found[name] = by_name({"model": model, **settings})
    return found | {
        "control_tf_idf": tf_idf,
        "control_untrained": untrained,
        "control_random_strings": random_letters,
    }


def measure(embed: Embed) -> dict[str, Any]:
    """Ranks of the right prompts, from 1, and the similarities of the opposites."""
    prompts = load_text_prompts()
    names = list(prompts)
    rendered = [prompts[name].render() for name in names]
    own = [i for i, name in enumerate(names) for _ in prompts[name].paraphrases]
    paraphrases = [text for name in names for text in prompts[name].paraphrases]
    table = embed([*rendered, *paraphrases])
    references, queries = table[: len(names)], table[len(names) :]
    similarity = centred_similarity(queries, references, queries.mean(0))
    right = similarity[torch.arange(len(own)), own]
    # Ties count half: an encoder that gives all texts one vector must not seem to be right.
    ties = (similarity == right[:, None]).sum(-1) - 1
    ranks = 1 + (similarity > right[:, None]).sum(-1) + ties / 2
    between = centred_similarity(references, references)
    pairs = {f"{a} / {b}": float(between[names.index(a), names.index(b)]) for a, b in OPPOSITES}
    return {"ranks": ranks.tolist(), "opposites": pairs, "width": table.shape[1]}


def measure_policy(path: Path) -> dict[str, Any]:
    """Similarities of the opposites after a trained policy's text head, centred on all tasks."""
    policy = LLMDPDPolicy.from_pretrained(path)
    if policy.encoder is None or policy.encoder.text is None:
        raise UserError(f"{path}: this policy reads no text")
    prompts = load_text_prompts()
    names = list(prompts)
    texts = [prompts[name].render() for name in names]
    with torch.no_grad():
        features = policy.encoder.text(embed_texts(texts, policy.info["text_encoder"]))
    between = centred_similarity(features, features)
    trained = policy.info["trained_tasks"]
    groups: dict[str, dict[str, float]] = {"trained": {}, "held_out": {}}
    for a, b in OPPOSITES:
        group = "trained" if a in trained and b in trained else "held_out"
        groups[group][f"{a} / {b}"] = float(between[names.index(a), names.index(b)])
    return groups


def time_embedding() -> dict[str, float]:
    """Seconds for 50 prompts that do not come with the package: with no cache at all, and again.

    The first includes fetching and converting the model. Both are processes of their own.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"LLMDPD_CACHE": cache}
        command = [sys.executable, "-c", _TIMED]
        cold, warm = (
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        )
    return {"cold_50_s": float(cold.stdout), "warm_50_s": float(warm.stdout)}


_TIMED = """
import time
from llmdpd_torchrl.prompts import embed_texts, load_text_prompts
texts = [prompt.render() + " " for prompt in load_text_prompts().values()]
start = time.perf_counter()
embed_texts(texts)
print(time.perf_counter() - start)
"""


def merged(encoders: Mapping[str, Any], policies: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured now, and before that of other encoders and policies."""
    path = RESULTS / "text_encoders_raw.json"
    before = json.loads(path.read_text()) if path.exists() else {"encoders": {}, "policies": {}}
    return {
        "encoders": before["encoders"] | encoders,
        "policies": policies or before["policies"],
    }


def figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """All figures; of shares and of cosines."""
    found: dict[str, float] = dict(raw["seconds"])
    for name, row in raw["encoders"].items():
        for count in (1, 5):
            share = statistics.mean(rank <= count for rank in row["ranks"])
            found[f"{name}_paraphrase_at_{count}"] = share
        found[f"{name}_opposites_cosine"] = statistics.mean(row["opposites"].values())
    for group in ("trained", "held_out"):
        pairs = [c for policy in raw["policies"].values() for c in policy[group].values()]
        if pairs:
            found[f"head_{group}_opposites_cosine"] = statistics.mean(pairs)
            found[f"head_{group}_opposites_largest"] = max(pairs)
    return found


def write_table(raw: Mapping[str, Any], found: Mapping[str, float], path: Path) -> None:
    """Markdown: a row an encoder."""
    lines = [
        "| encoder | width | paraphrase finds its prompt | among 5 | opposites' cosine |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in raw["encoders"].items():
        first, five = (f"{100 * found[f'{name}_paraphrase_at_{k}']:.0f} %" for k in (1, 5))
        cosine = found[f"{name}_opposites_cosine"]
        lines.append(
            f"| {name.replace('_', ' ')} | {row['width']} | {first} | {five} | {cosine:.2f} |"
        )
    write_text(path, "\n".join(lines) + "\n")


def run(options: Options) -> None:
    """Measure all encoders, and write figures and table."""
    measured = {name: measure(embed) for name, embed in encoders(options.also).items()}
    policies = {Path(p).parent.name: measure_policy(Path(p)) for p in options.policies}
    raw = merged(measured, policies) | {"seconds": time_embedding()}
    found = figures(raw)
    write_figures("text_encoders", found, raw, "python -m benchmarks.studies text_encoders")
    write_table(raw, found, RESULTS / "text_encoders.md")


def check() -> int:
    """Measure SmolLM2 and TF-IDF again, and compare; returns the exit code."""
    rows = encoders(())
    measured = {name: measure(rows[name]) for name in ("smollm2", "control_tf_idf")}
    found = figures({"encoders": measured, "seconds": {}, "policies": {}})
    return check_figures("text_encoders", found, tolerance=1e-3)
