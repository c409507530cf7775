"""Success on tasks that were never trained on, by their prompts alone: ``results/unseen.json``.

Every variant is trained on ML45's 45 training tasks, once a seed, and evaluated without fine-tuning
on the five that ML45 holds out, on the same goals, which neither the training nor the prompts use.
``pooled`` is the paper's conditioning; ``tokens`` reads the trajectory prompt as a function of the
observation; ``retrieve_and_play`` replays the prompt and is not trained. All were trained, where
they are, with prompts left out at random, so that one policy serves all controls: both prompts, one
of them, none, or those of another task (``wrong``). The prompts are one text and the first
successful demonstration of the task.

Design choices belong to ``--split ml45_validation``, which holds six of the training tasks out
instead and writes its figures apart.

What is trained (``outputs/``) or evaluated (``results/unseen/*.csv``, a row an episode) is not done
again: a run that was stopped goes on.

    python -m benchmarks.studies.unseen  # three seeds, hours
    python -m benchmarks.studies.unseen --variants retrieve_and_play
    python -m benchmarks.studies.unseen --summarise  # figures of what is kept so far
    python -m benchmarks.studies.unseen --check  # recompute the figures from the kept files
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import RESULTS, check_figures, write_figures, write_readme_table
from benchmarks.studies.episodes import read_episodes, write_episodes
from llmdpd_torchrl.baselines import retrieve_and_play_policy
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.evaluation import EvaluationSettings, evaluate
from llmdpd_torchrl.evaluation.comparison import paired_difference, successes
from llmdpd_torchrl.evaluation.controls import apply_control
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, summarise
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.tasks.splits import TaskSplit, make_split
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import write_atomic, write_json, write_text

ROOT = Path(__file__).parents[2]
CONTROLS = ("both", "text", "trajectory", "none", "wrong")
NOISE = 0.2  # of the actions; with more, the expert fails at some tasks
SEVERAL = ("demonstrations_2", "demonstrations_5")
#: Of demonstrations: steps out of order; one of an expert whose actions were disturbed; several.
DEMONSTRATIONS = ("shuffled", "noisy", *SEVERAL)
#: Of texts, each alone, on the tasks whose texts have been trained on.
TEXTS = ("text", "paraphrase", "random_text", "none")
#: Overrides of ``preset=ml45``; ``None``: not trained.
VARIANTS: dict[str, tuple[str, ...] | None] = {
    # A few prompts a task and batch: each distinct one is encoded, and a transformer is not cheap.
    "pooled": (
        "network.conditioning=pooled",
        "trajectory_prompt.length=32",
        "trajectory_prompt.per_task=2",
    ),
    "tokens": (),
    "retrieve_and_play": None,
}


@dataclass(frozen=True)
class Arm:
    """One policy under one control on one group of tasks."""

    variant: str
    seed: int
    control: str
    group: str

    def path(self, keep: Path) -> Path:
        """Where its episodes are kept."""
        return keep / f"{self.variant}-seed{self.seed}-{self.control}-{self.group}.csv"


def arms(variants: Iterable[str], seeds: Sequence[int]) -> list[Arm]:
    """All arms, policy by policy."""
    found = []
    for variant in variants:
        trained = VARIANTS[variant] is not None
        for seed in seeds if trained else (0,):
            controls: tuple[str, ...] = CONTROLS if trained else ("trajectory", "wrong")
            if variant != "pooled":
                controls += DEMONSTRATIONS
            found += [Arm(variant, seed, control, "unseen") for control in controls]
            seen = controls[:1] + (TEXTS if variant == "pooled" else ())
            found += [Arm(variant, seed, control, "seen") for control in seen]
    return found


def make_policy(arm: Arm, options: argparse.Namespace) -> LLMDPDPolicy:
    """The arm's policy, trained if it is not there yet."""
    overrides = VARIANTS[arm.variant]
    if overrides is None:
        return retrieve_and_play_policy()
    name = f"{options.split}-{arm.variant}-seed{arm.seed}"
    command = [
        sys.executable, "examples/train_metaworld.py", "preset=ml45", "until=train",
        f"name={name}", f"seed={arm.seed}", f"tasks.split={options.split}",
        f"data.folder={options.data.resolve()}", *overrides, *options.override,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    output = ROOT / "outputs" / name
    policy = LLMDPDPolicy.from_pretrained(output / "checkpoint")
    # Beside the episodes; of a training that was done before, its own time is kept.
    seconds = json.loads((output / "timings.json").read_text())["stage_seconds"]["train"]
    training = options.keep / f"{arm.variant}-seed{arm.seed}-training.json"
    about = {"fingerprint": policy.info["fingerprint"]}
    if not training.exists():
        settings = [part for part in command[2:] if not part.startswith("data.folder")]
        write_json(training, about | {"train_seconds": seconds, "settings": settings})
    elif json.loads(training.read_text())["fingerprint"] != about["fingerprint"]:
        raise UserError(
            f"{training}: the kept episodes are of another training than {output}; delete "
            f"{arm.variant}-seed{arm.seed}-* there to evaluate this one"
        )
    return policy


def make_bank(
    arm: Arm, tasks: Sequence[str], length: int, options: argparse.Namespace
) -> TrajectoryPromptBank:
    """A demonstration of each task, or several: of the training data for seen tasks."""
    seen = arm.group == "seen"
    dataset = TrajectoryDataset.load(options.data / ("train" if seen else "support"), tasks)
    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    if arm.control == "noisy":
        tasks_of = dataset.manifest.tasks
        noise = torch.tensor([e["noise"] for t in dataset.tasks for e in tasks_of[t].episodes])
        bank = bank.only((noise[bank.trajectory_id] == NOISE).nonzero().squeeze(-1))
    if arm.control not in SEVERAL:
        return bank.first(1)
    return bank.first(int(arm.control.rpartition("_")[2])).concatenated()


def run(
    arm: Arm,
    split: TaskSplit,
    options: argparse.Namespace,
    policies: dict[tuple[str, int], LLMDPDPolicy],
) -> None:
    """Evaluate an arm, unless that is done, and keep its episodes; ``policies`` are made once."""
    path = arm.path(options.keep)
    if path.exists():
        print(f"{path.stem}: kept")
        return
    key = (arm.variant, arm.seed)
    if key not in policies:
        policies[key] = make_policy(arm, options)
    policy = policies[key]
    tasks = split.train if arm.group == "seen" else split.held_out
    seen = arm.group == "seen"
    settings = EvaluationSettings(
        episodes_per_task=options.seen_episodes if seen else options.episodes
    )
    bank = make_bank(arm, tasks, policy.config.trajectory_length, options)
    # Other demonstrations of the task are made above; the rest of the controls are the library's.
    control = "both" if arm.control in ("noisy", *SEVERAL) else arm.control
    tables = PromptTables(text_embedding_table(METAWORLD_TASKS.names), bank)
    tables = apply_control(control, tasks, tables)
    print(path.stem, flush=True)
    episodes = evaluate(policy, tasks, tables, settings=settings, workers=options.workers)
    write_episodes(path, episodes)


def mean_success(results: Sequence[Sequence[EpisodeResult]]) -> float:
    """Mean over seeds and tasks, in percent."""
    return 100 * statistics.mean(float(rows.mean()) for rows in successes(results).values())


def figure_name(variant: str, control: str, group: str) -> str:
    """What an arm's figure is called: all that a variant reads goes without saying."""
    if control == ("trajectory" if VARIANTS[variant] is None else "both"):
        return f"{group}_{variant}"
    return f"{group}_{variant}_{'wrong_prompt' if control == 'wrong' else control}"


def figures(keep: Path) -> dict[str, float]:
    """All figures, from the kept files."""
    kept: dict[tuple[str, str, str], list[list[EpisodeResult]]] = {}
    for path in sorted(keep.glob("*.csv")):
        variant, _, control, group = path.stem.rsplit("-", 3)
        kept.setdefault((variant, control, group), []).append(read_episodes(path))
    found: dict[str, float] = {}
    for (variant, control, group), results in kept.items():
        found[figure_name(variant, control, group)] = mean_success(results)
        found[f"seeds_{group}_{variant}_{control}"] = len(results)
    for variant in VARIANTS:
        minutes = [
            json.loads(path.read_text())["train_seconds"] / 60
            for path in sorted(keep.glob(f"{variant}-seed*-training.json"))
        ]
        if minutes:
            found[f"train_minutes_{variant}"] = statistics.mean(minutes)
    if "unseen_tokens_none" in found:
        found["unseen_no_prompt"] = found["unseen_tokens_none"]
    ours = kept.get(("tokens", "both", "unseen"))
    theirs = kept.get(("retrieve_and_play", "trajectory", "unseen"))
    if ours and theirs:
        # Ours is the mean over its seeds, which the interval takes as they are.
        difference = paired_difference(successes(ours), successes(theirs))
        found["tokens_minus_retrieve_and_play_low"] = 100 * difference.low
        found["tokens_minus_retrieve_and_play_high"] = 100 * difference.high
    return found


def write_tables(keep: Path, path: Path) -> list[str]:
    """Markdown: a row an arm, all its seeds together, with the interval over their episodes.

    Returns:
        the README's lines: a row a variant.
    """
    rows: dict[tuple[str, str, str], list[EpisodeResult]] = {}
    for file in sorted(keep.glob("*.csv")):
        variant, _, control, group = file.stem.rsplit("-", 3)
        rows.setdefault((variant, control, group), []).extend(read_episodes(file))
    tasks = sorted({e.task for key, found in rows.items() if key[2] == "unseen" for e in found})
    tables = {
        "unseen": [
            f"| variant | shown | {' | '.join(tasks)} | unseen, % (95 %) |",
            "|---|---|" + "---:|" * (len(tasks) + 1),
        ],
        "seen": ["| variant | shown | seen, % (95 %) |", "|---|---|---:|"],
    }
    means: dict[tuple[str, str, str], str] = {}
    for (variant, control, group), episodes in rows.items():
        of_group = sorted({episode.task for episode in episodes})
        summary = summarise(episodes, [], of_group)
        mean = summary.unseen
        assert mean is not None
        whole = f"{100 * mean.success_rate:.0f} ({100 * mean.low:.0f}-{100 * mean.high:.0f})"
        means[variant, control, group] = whole
        cells = [f"{100 * task.success_rate:.0f}" for task in summary.tasks]
        each = cells if group == "unseen" else []
        tables[group].append(f"| {' | '.join([variant, control, *each, whole])} |")
    write_text(path, "\n".join([*tables["unseen"], "", *tables["seen"]]) + "\n")
    lines = [
        "| success, % (95 % interval) | own prompts | another task's | no prompt | 45 seen tasks |",
        "|---|---:|---:|---:|---:|",
    ]
    for variant, name in (("pooled", "pooled, as in the paper"), ("tokens", "retrieved"),
                          ("retrieve_and_play", "retrieve and play, untrained")):  # fmt: skip
        own = "trajectory" if VARIANTS[variant] is None else "both"
        arms_shown = ((own, "unseen"), ("wrong", "unseen"), ("none", "unseen"), (own, "seen"))
        lines.append(
            f"| {name} | {' | '.join(means.get((variant, *arm), '') for arm in arms_shown)} |"
        )
    return lines


def plot(found: Mapping[str, float], path: Path) -> None:
    """Bars of all variants under all controls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(VARIANTS)
    for number, variant in enumerate(VARIANTS):
        heights = [
            found.get(figure_name(variant, control, "unseen"), math.nan) for control in CONTROLS
        ]
        if all(math.isnan(height) for height in heights):
            continue
        places = [index + (number - 1) * width for index in range(len(CONTROLS))]
        bars = axis.bar(places, heights, width, label=variant.replace("_", " "))
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(CONTROLS)), CONTROLS)
    axis.set(ylabel="success on unseen tasks, %", ylim=(0, 105), xlabel="prompts that are shown")
    axis.legend()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def main() -> int:
    """Run what is missing and write the figures, or check them against the kept files."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["ml45", "ml45_validation"], default="ml45")
    parser.add_argument("--episodes", type=int, default=25, help="of each unseen task")
    parser.add_argument("--seen-episodes", type=int, default=3, help="of each seen task")
    parser.add_argument("--data", type=Path, default=ROOT / "data_cache" / "metaworld_ml45")
    parser.add_argument("--workers", type=int, help="processes of the evaluation")
    parser.add_argument("--keep", type=Path, help="folder of the episodes")
    parser.add_argument("--override", nargs="*", default=[], help="more settings of the training")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--summarise", action="store_true", help="run nothing, write the figures")
    mode.add_argument("--check", action="store_true", help="recompute from the kept files")
    options = parser.parse_args()
    name = "unseen" if options.split == "ml45" else "unseen_validation"
    options.keep = options.keep or RESULTS / name
    if options.check:
        return check_figures(name, figures(options.keep), tolerance=1e-9)
    split = make_split(options.split)
    policies: dict[tuple[str, int], LLMDPDPolicy] = {}
    wanted = [] if options.summarise else arms(options.variants, options.seeds)
    try:
        for arm in wanted:
            run(arm, split, options, policies)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = figures(options.keep)
    if options.keep == RESULTS / name:
        raw = {path.stem: f"{name}/{path.name}" for path in sorted(options.keep.glob("*.csv"))}
        command = f"python -m benchmarks.studies.unseen --split {options.split}"
        write_figures(name, found, raw, command)
        lines = write_tables(options.keep, RESULTS / f"{name}.md")
        if options.split == "ml45":
            write_readme_table("studies.unseen", lines)
        plot(found, RESULTS / f"{name}.png")
    else:
        for figure, value in found.items():
            print(f"{figure}: {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
