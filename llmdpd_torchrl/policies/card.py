"""The model card of a saved policy: ``README.md``, made from what the policy knows of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.utils.files import write_text

__all__ = ["model_card", "write_card"]

_MARK = "<!-- written by save_pretrained -->"


def write_card(folder: Path, config: NetworkConfig, description: dict[str, Any]) -> None:
    """Write the card into ``folder``, unless somebody wrote one by hand."""
    path = folder / "README.md"
    if not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace"):
        write_text(path, model_card(config, description))


def model_card(config: NetworkConfig, description: dict[str, Any]) -> str:
    """The card's text, in the Hub's format.

    Args:
        config: of the networks.
        description: the content of ``policy.json``.
    """
    info = description["info"]
    prompts = {
        "both": "a text and one demonstration of the task",
        "text": "a text that describes the task",
        "trajectory": "one demonstration of the task",
        "none": "no prompt",
    }
    rows = {
        "reads": f"{config.observation_dim} observation entries and {prompts[config.prompt]}",
        "writes": f"{config.action_dim} action entries in [-1, 1]",
        "actor": config.actor,
        "denoising steps": config.diffusion_steps if config.diffuses else None,
        "text encoder": info.get("text_encoder"),
        "trained tasks": ", ".join(map(str, info.get("trained_tasks", ()))),
        "updates": info.get("updates"),
        "data (SHA-256)": info.get("data_hash"),
        "weights (SHA-256)": description["weights"]["sha256"],
        "written with": ", ".join(f"{k} {v}" for k, v in description["versions"].items()),
    }
    lines = [
        "---",
        "library_name: llmdpd_torchrl",
        "tags: [reinforcement-learning, offline-rl, diffusion-policy, torchrl]",
        "---",
        _MARK,
        "# Prompted diffusion policy",
        "",
        "A policy of [LLM-Driven Policy Diffusion](https://arxiv.org/abs/2509.00347), trained with",
        "`llmdpd_torchrl`: safetensors and JSON, nothing to unpickle.",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {name} | {_cell(value)} |"
            for name, value in rows.items()
            if value not in (None, "")
        ),
        "",
        "```python",
        "from llmdpd_torchrl.modules import LLMDPDPolicy",
        "",
        'policy = LLMDPDPolicy.from_pretrained("FOLDER OR HUB ID")',
        f"prompted = policy.prompt({_arguments(config)})",
        "```",
        "",
        "`policy.json` holds the observation's layout, the task table and the networks' structure;",
        "the normalisation of the observation is among the weights.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())


def _arguments(config: NetworkConfig) -> str:
    parts = []
    if config.uses_text:
        parts.append('text="..."')
    if config.uses_trajectory:
        parts.append("trajectories=demonstration")
    return ", ".join(parts)
