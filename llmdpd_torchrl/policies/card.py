"""The card of a saved policy: ``README.md``, whose header the Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from importlib import resources
from typing import Any

from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.utils.errors import ConfigError, first_line
from llmdpd_torchrl.utils.settings import Number, Size, Text, checked_dataclass

MARK = "<!-- written by save_pretrained"
"""Begins a comment in every card that is rewritten with its policy."""
_PROMPTS = {
    "both": "a text and one demonstration of the task",
    "text": "a text that describes the task",
    "trajectory": "one demonstration of the task",
    "none": "no prompt",
}


@checked_dataclass(frozen=True)
class CardResult:
    """The mean over a group of tasks, an entry of a policy's ``info["results"]``.

    Attributes:
        group: ``"seen"`` or ``"unseen"`` tasks.
        tasks: how many.
        measure: ``"success rate, %"`` or ``"normalised score"``.
        value: the mean on a scale of 100.
        low: lower limit of its 95 % interval, ``None`` if unknown.
        high: upper limit of the same.
        episodes: of all these tasks.
        note: what was unusual about the evaluation, such as another prompt.

    Examples:
        >>> CardResult("unseen", 5, "success rate, %", 82.0, 69.0, 89.0, episodes=50).title
        '5 unseen tasks'
    """

    group: Text
    tasks: Size
    measure: Text
    value: Number
    low: Number | None
    high: Number | None
    episodes: Size
    note: str = ""

    @property
    def title(self) -> str:
        """What was evaluated, in words."""
        return f"{self.tasks} {self.group} task{'s' * (self.tasks > 1)}{self.note}"

    @property
    def interval(self) -> str:
        """The limits in words."""
        return "-" if self.low is None or self.high is None else f"{self.low:g} to {self.high:g}"


def model_card(
    config: NetworkConfig, description: dict[str, Any], files: Collection[str] = ()
) -> str:
    """The card's text; ``description`` is that of ``config.json``, ``files`` lie beside it."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    info = description["info"]
    try:
        results = [CardResult(**entry) for entry in info.get("results") or ()]
    except (TypeError, ConfigError) as error:
        raise ConfigError(
            "the policy's info['results'] is no list of CardResult's arguments: "
            f"{first_line(error)}"
        ) from None
    benchmark = info.get("benchmark", "evaluation")
    data = ModelCardData(
        license=info.get("license", "mit"),
        library_name="llmdpd_torchrl",
        pipeline_tag="reinforcement-learning",
        language="en" if config.uses_text else None,
        tags=[
            "reinforcement-learning",
            "offline-rl",
            "torchrl",
            *["diffusion-policy"] * config.diffuses,
        ],
        model_name=info.get("name", "policy") if results else None,
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type=re.sub(r"\W+", "-", benchmark.lower()),
                dataset_name=f"{benchmark}: {result.title}",
                dataset_split=result.group,
                metric_type=re.sub(r"\W+", "_", result.measure.lower()).strip("_"),
                metric_name=result.measure,
                metric_value=result.value,
            )
            for result in results
        ]
        or None,
    )
    rows = {
        "reads": f"{config.observation_dim} observation entries and {_PROMPTS[config.prompt]}",
        "writes": f"{config.action_dim} action entries in [-1, 1]",
        "algorithm": info.get("algorithm"),
        "actor": config.actor,
        "denoising steps": config.diffusion_steps if config.diffuses else None,
        "text encoder": info.get("text_encoder") if config.uses_text else None,
        "trained tasks": ", ".join(map(str, info.get("trained_tasks", ()))),
        "updates": info.get("updates"),
        "seed": info.get("seed"),
        "data": info.get("data"),
        "data (SHA-256)": info.get("data_hash"),
        "weights (SHA-256)": description["weights"]["sha256"],
        "written with": ", ".join(f"{k} {v}" for k, v in description["versions"].items()),
    }
    arguments = ['text="..."'] * config.uses_text
    arguments += ["trajectories=demonstration"] * config.uses_trajectory
    template = resources.files("llmdpd_torchrl.policies").joinpath("card.md.j2")
    card = ModelCard.from_template(
        data,
        template_str=template.read_text(encoding="utf-8"),
        mark=f"{MARK}; without this line the card stays as it is -->",
        title=info.get("name", "Policy"),
        rows={
            name: _cell(value) for name, value in rows.items() if value is not None and value != ""
        },
        results=results,
        files=files,
        config=config,
        call=f"policy.prompt({', '.join(arguments)})",
        repository=info.get("name", "FOLDER OR HUB ID"),
        own=description.get("own_modules"),
    )
    return f"{str(card).rstrip()}\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())
