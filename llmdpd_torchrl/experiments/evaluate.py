"""The evaluation of a run, under what its configuration lets be shown."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator
from llmdpd_torchrl.evaluation import results as report
from llmdpd_torchrl.evaluation.backends import Backend, make_backend
from llmdpd_torchrl.evaluation.controls import apply_control, confusion
from llmdpd_torchrl.evaluation.plots import plot_learning_curves, plot_success_bars
from llmdpd_torchrl.evaluation.statistics import summarise
from llmdpd_torchrl.experiments.config import plain
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.utils.files import write_json

if TYPE_CHECKING:
    from llmdpd_torchrl.experiments.run import Run

__all__ = ["evaluate", "make_evaluator", "settings_of", "shown"]


def settings_of(run: Run, **changes: Any) -> EvaluationSettings:
    """How the run's evaluations are made."""
    return dataclasses.replace(run.family.settings(run.cfg), **changes)


def make_evaluator(
    run: Run,
    tasks: Sequence[str],
    progress: bool,
    *,
    backend: Backend | None = None,
    **changes: Any,
) -> Evaluator:
    """The evaluator of some of the run's tasks.

    Args:
        run: whose settings hold.
        tasks: to be evaluated.
        progress: whether to show a bar.
        backend: its workers, where several evaluators share them; default: its own.
        **changes: of the settings.
    """
    settings = settings_of(run, **changes)
    if backend is None:
        backend = make_backend(run.cfg.evaluation.backend, run.cfg.evaluation.workers)
    suite = run.family.suite(run, settings)
    return Evaluator(tasks, settings, suite=suite, backend=backend, progress=progress)


def shown(run: Run, tasks: Sequence[str] | None = None) -> tuple[Any, Any]:
    """The prompts that the evaluation of some tasks, or all, shows."""
    cfg = run.cfg
    # In the table's order: where neighbours are alike, half the list away is not.
    tasks = sorted(tasks or run.split.tasks, key=run.split.table.index)
    bank = run.evaluation_bank
    if cfg.evaluation.demonstration_share < 1:
        bank = bank.beginnings(cfg.evaluation.demonstration_share)
    table, bank = apply_control(
        cfg.evaluation.control,
        tasks,
        run.text_table,
        bank,
        encoder=plain(cfg.text_encoder),
        table=run.split.table,
        prompts=run.family.prompts(run),
    )
    if bank is not None and cfg.evaluation.demonstrations > 1:
        bank = bank.first(cfg.evaluation.demonstrations).joined()
    return table, bank


def evaluate(run: Run) -> None:
    """Evaluate the last policy, and the one that was best during the training if there is one."""
    _measure(run, run.policy, run.output, run.cfg.name)
    best = run.output / "best"
    if run.cfg.evaluation.every and (best / "checkpoint" / "policy.json").exists():
        policy = LLMDPDPolicy.from_pretrained(best / "checkpoint")
        if policy.info.get("fingerprint") == run.fingerprint:
            _measure(run, policy, best, f"{run.cfg.name} best (online selection)")


def _measure(run: Run, policy: LLMDPDPolicy, output: Path, name: str) -> None:
    """Evaluate on seen and unseen tasks, and write results, table and plots."""
    cfg, split = run.cfg, run.split
    path = output / "results.json"
    about = {
        "fingerprint": run.fingerprint,
        "support_hash": run.support_hash,  # other demonstrations, another result
        "updates": policy.info.get("updates"),
        "evaluation": dataclasses.asdict(settings_of(run)),
        "control": cfg.evaluation.control,
        "demonstrations": cfg.evaluation.demonstrations,
        "demonstration_share": cfg.evaluation.demonstration_share,
    }
    if path.exists() and not set(cfg.force) & {"train", "evaluate"}:
        summary, before = report.read_results_json(path)
        if all(before.get(key) == value for key, value in about.items()):
            print(f"evaluate: reusing {path} (force=[evaluate] evaluates again)")
            run.failed += sum(task.errors for task in summary.tasks)
            report.print_table(summary)
            _confuse(run, policy, output)
            return
    for stale in ("confusion.json", "episodes.mp4"):
        (output / stale).unlink(missing_ok=True)
    table, bank = shown(run)
    with make_evaluator(run, split.tasks, cfg.progress) as evaluator:
        episodes = evaluator(policy, text_table=table, bank=bank)
    run.failed += sum(episode.error is not None for episode in episodes)
    summary = summarise(episodes, split.train, split.held_out)
    extra = {
        **about,
        "name": name,
        "prompt": cfg.prompt,
        "seed": cfg.seed,
        "split": dataclasses.asdict(split) | {"table": None},
        "data_hash": run.dataset.manifest.data_hash,
        "command": ["python", *sys.argv],
        "starts": evaluator.suite.starts(),
        "episodes": [dataclasses.asdict(episode) for episode in episodes],
    }
    report.write_results_json(path, summary, extra)
    report.write_markdown(summary, output / "results.md")
    title = f"{'Success' if summary.measure == 'success %' else 'Score'} by task: {name}"
    if cfg.evaluation.control != "both":
        title += f", shown {cfg.evaluation.control}"
    plot_success_bars(summary, output / "success.png", title=title)
    if (output / "metrics.csv").exists():
        plot_learning_curves(output / "metrics.csv", output / "learning_curves.png")
    report.print_table(summary)
    _confuse(run, policy, output)


def _confuse(run: Run, policy: LLMDPDPolicy, output: Path) -> None:
    """Evaluate every unseen task under every one's prompts, if that is wanted and not done."""
    count, tasks = run.cfg.evaluation.confusion, run.split.held_out
    path = output / "confusion.json"
    if not count or len(tasks) < 2:
        return
    if path.exists() and json.loads(path.read_text()).get("episodes") == count:
        return
    table, bank = shown(run)
    with make_evaluator(run, tasks, run.cfg.progress, episodes_per_task=count) as evaluator:
        rates = confusion(evaluator, policy, text_table=table, bank=bank, table=run.split.table)
    write_json(path, {"rates": rates, "episodes": count})
