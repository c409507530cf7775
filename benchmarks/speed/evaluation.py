"""The evaluator's speed: ``results/evaluation.json``.

250 episodes (ML45's five unseen tasks, 50 goals each) of a policy of the default structure with
random weights, which spends all 500 steps on nearly every one, on all cores:
``episodes_per_minute``, and ``outside_simulator_share``, the part of the workers' wall time that is
not spent in Meta-World's ``step`` and ``reset``. They are of an evaluator's second call: a training
that evaluates at intervals keeps its workers. ``first_call_extra_s`` is what the first call takes
longer: processes start and simulators are built. Both give the same results, or this fails.

``speedup_vs_serial``: the same policy and episodes, one environment after another on one core, the
policy called for each state alone, measured in the same run on every tenth goal.

    python -m benchmarks.speed.evaluation  # some minutes, on an idle machine
    python -m benchmarks.speed.evaluation --check  # a tenth of the goals against the figures
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import check_figures, write_figures
from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator
from llmdpd_torchrl.evaluation.rollout import make_policy_env
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, make_split
from llmdpd_torchrl.utils.processes import available_cores

TASKS = make_split("ml45").held_out


def make_policy() -> tuple[LLMDPDPolicy, PromptTables]:
    """The policy and its prompts: texts, and one demonstration of each task."""
    torch.manual_seed(0)
    config = NetworkConfig(text_dropout=0.2, trajectory_dropout=0.2)
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    with tempfile.TemporaryDirectory() as folder:
        one = CollectionSettings(episodes_per_task=1, noise_levels=(0.0,))
        collect_metaworld(folder, TASKS, one, progress=False)
        dataset = TrajectoryDataset.load(folder, TASKS)
        bank = TrajectoryPromptBank.from_dataset(
            dataset, config.trajectory_length, trained_on=False
        )
    return policy, PromptTables(text_embedding_table(METAWORLD_TASKS.names), bank)


def run_evaluator(
    policy: LLMDPDPolicy, tables: PromptTables, settings: EvaluationSettings, workers: int
) -> dict[str, Any]:
    """Evaluate twice with the same workers, and profile the second time."""
    with Evaluator(TASKS, settings, workers=workers) as evaluator:
        walls, results = [], []
        for _ in range(2):
            started = time.perf_counter()
            results.append(evaluator(policy, tables))
            walls.append(time.perf_counter() - started)
        timings = [timing._asdict() for timing in evaluator.timings]
    episodes = results[0]
    if results[1] != episodes or any(episode.error for episode in episodes):
        raise SystemExit("two evaluations of one policy differ, or an episode crashed")
    return {
        "wall_s": walls[1],
        "first_wall_s": walls[0],
        "workers": workers,
        "groups": timings,
        "episodes": len(episodes),
        "steps": sum(episode.length for episode in episodes),
    }


def run_serial(
    policy: LLMDPDPolicy, tables: PromptTables, settings: EvaluationSettings, every: int
) -> dict[str, Any]:
    """One environment after another, one state at a time, on every ``every``-th goal."""
    suite = settings.suite(TASKS)
    generator = settings.generator(0)
    goals = range(0, settings.episodes_per_task, every)
    steps = 0
    started = time.perf_counter()
    bar = tqdm(total=len(TASKS) * len(goals), desc="serial", unit="episode")
    with bar, torch.no_grad():
        for task in TASKS:
            env = make_policy_env(policy, suite.make(task), tables)
            for goal in goals:
                env.base_env.choose_episode(goal)
                state = env.reset()
                done = False
                while not done:
                    action = settings.act(policy, state.unsqueeze(0), generator).squeeze(0)
                    step = env.step(state.set("action", action))["next"]
                    state, done = step.exclude("reward"), bool(step["done"])
                    steps += 1
                bar.update()
            env.close()
    return {
        "wall_s": time.perf_counter() - started,
        "episodes": len(TASKS) * len(goals),
        "steps": steps,
    }


def figures(raw: dict[str, Any]) -> dict[str, float]:
    """All figures."""
    ours, serial = raw["evaluator"], raw["serial"]
    inside = sum(group["simulator"] for group in ours["groups"])
    return {
        "outside_simulator_share": 1 - inside / (ours["wall_s"] * ours["workers"]),
        # Both by steps: how long an episode is, differs with its goal.
        "speedup_vs_serial": ours["steps"] / ours["wall_s"] * serial["wall_s"] / serial["steps"],
        "episodes_per_minute": 60 * ours["episodes"] / ours["wall_s"],
        "steps_per_s": ours["steps"] / ours["wall_s"],
        "first_call_extra_s": ours["first_wall_s"] - ours["wall_s"],
    }


def main() -> int:
    """Measure and write the figures, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="a tenth of the goals")
    parser.add_argument("--num-envs", type=int, default=EvaluationSettings.num_envs)
    parser.add_argument("--group-size", type=int, default=EvaluationSettings.group_size)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, tables = make_policy()
    goals = 5 if options.check else 50
    settings = EvaluationSettings(
        episodes_per_task=goals, num_envs=options.num_envs, group_size=options.group_size
    )
    raw = {
        "evaluator": run_evaluator(policy, tables, settings, available_cores()),
        "serial": run_serial(policy, tables, settings, every=5 if options.check else 10),
    }
    found = figures(raw)
    if options.check:
        ratio = {"speedup_vs_serial": found["speedup_vs_serial"]}
        return check_figures("evaluation", ratio, tolerance=0.5)
    write_figures("evaluation", found, raw, "python -m benchmarks.speed.evaluation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
