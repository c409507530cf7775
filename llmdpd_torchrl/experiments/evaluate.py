"""The evaluation of a run and its videos, under the prompts that its configuration names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmdpd_torchrl.evaluation import Evaluator
from llmdpd_torchrl.evaluation import results as report
from llmdpd_torchrl.evaluation.controls import apply_control, confusion
from llmdpd_torchrl.evaluation.outputs import write_evaluation
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, ResultsSummary
from llmdpd_torchrl.evaluation.video import Frame, record_grid, task_caption
from llmdpd_torchrl.experiments.config import Run, plain, text_encoder, trusted
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.trainers.loggers import write_mp4
from llmdpd_torchrl.utils.files import write_json
from llmdpd_torchrl.utils.processes import Backend, make_backend


def make_evaluator(
    run: Run,
    tasks: Sequence[str],
    progress: bool,
    *,
    backend: Backend | None = None,
    **changes: Any,
) -> Evaluator:
    """The evaluator of some of the run's tasks, with ``changes`` of its settings.

    ``backend`` has workers that several evaluators share; by default it has workers of its own.
    """
    settings = dataclasses.replace(run.family.settings(run.cfg), **changes)
    if backend is None:
        backend = make_backend(run.cfg.evaluation.backend, run.cfg.evaluation.workers)
    suite = run.family.suite(run, settings)
    return Evaluator(tasks, settings, suite=suite, backend=backend, progress=progress)


def evaluated_policy(run: Run, policy: LLMDPDPolicy) -> LLMDPDPolicy:
    """The policy as the run's evaluations let it act."""
    return policy.without_state() if run.cfg.evaluation.hide_state else policy


def evaluation_prompts(run: Run, tasks: Sequence[str] | None = None) -> PromptTables:
    """The prompts of an evaluation on some tasks, default all, under the configured control."""
    cfg = run.cfg
    # In the table's order: where neighbours are alike, half the list away is not.
    tasks = sorted(tasks or run.split.tasks, key=run.split.table.index)
    tables = run.evaluation_prompts
    if cfg.evaluation.demonstration_fraction < 1:
        fraction = cfg.evaluation.demonstration_fraction
        tables = tables.map_trajectories(lambda bank: bank.truncate(fraction))
    tables = apply_control(
        cfg.evaluation.control,
        tasks,
        tables,
        encoder=text_encoder(cfg),
        table=run.split.table,
        prompts=run.family.prompts(),
        trained=run.split.train,
    )
    # No more are read: each group of episodes would prepare all that there are of the training's.
    tables = tables.map_trajectories(lambda bank: bank.first(cfg.evaluation.demonstrations))
    if cfg.evaluation.turn is not None:
        return PromptTables(tables.text, tables.trajectories, cfg.evaluation.turn)
    if cfg.evaluation.demonstrations > 1:
        tables = tables.map_trajectories(TrajectoryPromptBank.concatenated)
    return tables


def evaluate(run: Run) -> None:
    """Evaluate the last policy and, if there is one, the best of the training's evaluations."""
    summary = _evaluate_policy(run, run.policy, run.output, run.cfg.name)
    tasks = summary.unseen or summary.seen
    if tasks is not None:
        run.objective = tasks.success_rate if tasks.score is None else tasks.score
    best = run.output / "best"
    if run.cfg.evaluation.every and LLMDPDPolicy.is_saved(best / "checkpoint"):
        policy = LLMDPDPolicy.from_pretrained(
            best / "checkpoint", run.device, trust=trusted(run.cfg)
        )
        if policy.info.get("fingerprint") == run.fingerprint:
            _evaluate_policy(run, policy, best, f"{run.cfg.name} best (online selection)")


def _evaluate_policy(run: Run, policy: LLMDPDPolicy, output: Path, name: str) -> ResultsSummary:
    """Evaluate on seen and unseen tasks, and write results, table and plots."""
    cfg, split, policy = run.cfg, run.split, evaluated_policy(run, policy)
    path, settings = output / "results.json", run.family.settings(cfg)
    about = {
        "fingerprint": run.fingerprint,
        "support_hash": run.support_hash,  # other demonstrations, another result
        "updates": policy.info.get("updates"),
        "evaluation": settings.to_dict(),
        "control": cfg.evaluation.control,
        "demonstrations": cfg.evaluation.demonstrations,
        "demonstration_fraction": cfg.evaluation.demonstration_fraction,
        # null, as in results that have no such key: they are compared with these.
        "turn": cfg.evaluation.turn,
        "hide_state": cfg.evaluation.hide_state or None,
    }
    if path.exists() and not set(cfg.force) & {"train", "evaluate"}:
        summary, before = report.read_results_json(path)
        starts = run.family.starts(run, settings)
        alike = starts is None or before.get("starts") == json.loads(json.dumps(starts))
        if alike and all(before.get(key) == value for key, value in about.items()):
            print(f"evaluate: reusing {path} (force=[evaluate] evaluates again)")
            run.failed += sum(task.errors for task in summary.tasks)
            report.print_table(summary)
            _compare_acting(run, policy, output)
            _evaluate_confusion(run, policy, output)
            return summary
    for stale in ("acting.json", "confusion.json", "episodes.mp4"):
        (output / stale).unlink(missing_ok=True)
    with make_evaluator(run, split.tasks, cfg.progress) as evaluator:
        episodes = evaluator(policy, evaluation_prompts(run))
    run.failed += sum(episode.error is not None for episode in episodes)
    control = cfg.evaluation.control
    summary = write_evaluation(
        output,
        episodes,
        evaluator.suite,
        seen=split.train,
        unseen=split.held_out,
        about={
            **about,
            "name": name,
            "prompt": cfg.prompt,
            "seed": cfg.seed,
            "split": dataclasses.asdict(split) | {"table": None},
            "data_hash": run.dataset.manifest.data_hash,
        },
        note="" if control == "both" else f", prompted with {control}",
    )
    _compare_acting(run, policy, output, episodes)
    _evaluate_confusion(run, policy, output)
    return summary


def _compare_acting(
    run: Run, policy: LLMDPDPolicy, output: Path, own: Sequence[EpisodeResult] | None = None
) -> None:
    """Evaluate further ways to act, if configured and not done yet, and print what they change.

    ``own`` are the episodes of the configured way; by default they are evaluated again.
    """
    path, wanted = output / "acting.json", plain(run.cfg.evaluation.compare)
    if not wanted or (path.exists() and json.loads(path.read_text())["compared"] == wanted):
        return
    tables = evaluation_prompts(run)

    def evaluated(**changes: Any) -> list[EpisodeResult]:
        with make_evaluator(run, run.split.tasks, run.cfg.progress, **changes) as evaluator:
            return evaluator(policy, tables)

    own = evaluated() if own is None else own
    ways = {way: evaluated(acting=way) for way in wanted}
    table = report.acting_table(own, ways, {"seen": run.split.train, "unseen": run.split.held_out})
    report.print_markdown(table.markdown(texts=2))
    write_json(path, {"compared": wanted, "columns": table.head, "rows": table.rows})


def _evaluate_confusion(run: Run, policy: LLMDPDPolicy, output: Path) -> None:
    """Evaluate every unseen task under each one's prompts, if configured and not done yet."""
    count, tasks = run.cfg.evaluation.confusion, run.split.held_out
    path = output / "confusion.json"
    if not count or len(tasks) < 2:
        return
    if path.exists() and json.loads(path.read_text()).get("episodes") == count:
        return
    tables = evaluation_prompts(run)
    with make_evaluator(run, tasks, run.cfg.progress, episodes_per_task=count) as evaluator:
        rates = confusion(evaluator, policy, tables, table=run.split.table)
    write_json(path, {"rates": rates, "episodes": count})


def record(run: Run) -> None:
    """Write ``episodes.mp4``: one episode of each of the videos' tasks, side by side."""
    render = video_renderer(run, run.cfg.progress)
    if render is not None:
        write_mp4(run.output / "episodes.mp4", render(), run.cfg.video.fps)


def video_renderer(run: Run, progress: bool) -> Callable[[], list[Frame]] | None:
    """A function that renders the video, if there are tasks for it and it is possible here."""
    captions = _captions(run)
    if not captions:
        return None
    if problem := run.family.rendering_problem():
        print(f"video: {problem}")
        return None

    def render() -> list[Frame]:
        cfg, settings = run.cfg, run.family.settings(run.cfg)
        frames, _ = record_grid(
            evaluated_policy(run, run.policy),
            captions,
            evaluation_prompts(run),
            settings=settings,
            suite=run.family.suite(run, settings),
            every=cfg.video.every,
            size=(cfg.video.width, cfg.video.height),
            progress=progress,
        )
        return frames

    return render


def _captions(run: Run) -> dict[str, str]:
    """The caption of each of the videos' tasks."""
    cfg, split, prompts = run.cfg, run.split, run.family.prompts()
    tasks = (split.held_out or split.train)[:4]
    if cfg.video.tasks is not None:
        tasks = tuple(cfg.video.tasks)
    control = cfg.evaluation.control
    prompt = cfg.prompt if control == "both" else f"{cfg.prompt}, given {control}"
    words = {task: prompts[task].objective or prompts[task].task for task in tasks}
    return {
        task: task_caption(task, words[task], is_seen=task in split.train, prompt=prompt)
        for task in tasks
    }
