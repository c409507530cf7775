"""Diffusion-QL with Q guidance and without on a Hopper file: ``results/hopper.json``.

Each run, one seed and one weight of the guidance term, trains actor and critics for the same number
of updates and evaluates the last networks on the same 100 episodes; its raw result is stored in
``results/hopper/`` and not made again. ``wins`` counts the seeds whose score with guidance is above
that without. A run that is killed resumes from its last state in ``outputs/hopper/``.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, check_figures, write_figures
from llmdpd_torchrl.data.d4rl import read_d4rl_file
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.modules.conditioning import ObservationConditioner, ObservationFeatures
from llmdpd_torchrl.objectives import GUIDANCE_MODES, DiffusionQLLoss
from llmdpd_torchrl.tasks.table import normalized_score
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, OfflineTrainer, TargetUpdater
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_atomic, write_json

STORED = RESULTS / "hopper"
STATES = Path(__file__).parents[2] / "outputs" / "hopper"
EPISODES = 100
SELECTIONS = ("drawn", "deterministic", "ranked")
CANDIDATES = 50
HIDDEN = (128, 128)
SAVE_EVERY = 10_000


@dataclass
class Options:
    """Settings of the study; ``data`` is a D4RL-layout .hdf5 file of Hopper."""

    data: str = ""
    updates: int = 50_000
    seeds: Sequence[int] = (0, 1, 2)
    lmbda: Sequence[float] = (0.0, 1.0)
    guidance: str = "one_step"
    device: str = "cpu"
    store: str = str(STORED)


def build(dataset: OfflineDataset, lmbda: float, options: Options) -> DiffusionQLLoss:
    """Diffusion-QL's networks and settings, made cheaper for a CPU where it costs no quality.

    Two layers of 128 instead of three of 256, SiLU instead of Mish, and two of the five reverse
    steps for the target's action.
    """
    layout = dataset.manifest.observation_layout
    features = ObservationFeatures(layout["fields"], list(layout["fields"]))
    features.fit(dataset.transitions["observation"])
    actor = DiffusionActor(
        dataset.manifest.action_size,
        features.out_features,
        conditioner=ObservationConditioner(copy.deepcopy(features)),
        in_keys=["observation"],
        hidden=HIDDEN,
        activation="silu",
    ).to(options.device)
    critics = make_qvalue_networks(
        features.out_features,
        dataset.manifest.action_size,
        observation_module=features,
        hidden=HIDDEN,
        activation="silu",
    )
    loss = DiffusionQLLoss(
        actor,
        [critic.to(options.device) for critic in critics],
        lmbda=lmbda,
        guidance=options.guidance,
        target_sampling_steps=2,
        deactivate_vmap=True,
    )
    loss.make_value_estimator(gamma=0.99)
    return loss


def train(
    loss: DiffusionQLLoss, dataset: OfflineDataset, seed: int, state: Path, options: Options
) -> float:
    """Update until ``options.updates``, from the saved state if there is one; seconds it took."""
    # A constant rate: Diffusion-QL's cosine has hardly begun when its training ends.
    stepper = OfflineOptimizationStepper(loss, learning_rate=3e-4, max_grad_norm=9.0)
    updater = TargetUpdater(loss)
    seconds = 0.0
    if state.exists():
        saved = torch.load(state, map_location=options.device, weights_only=True)
        loss.load_state_dict(saved["loss"])
        stepper.load_state_dict(saved["stepper"])
        updater.counter, seconds = saved["updates"], saved["seconds"]
    while updater.counter < options.updates:
        print(f"{state.stem}: update {updater.counter} of {options.updates}", flush=True)
        # Batches and noise of a stretch are a function of its number: a run that was interrupted
        # and one that was not see the same.
        stretch = seed + 1000 * updater.counter
        torch.manual_seed(stretch)
        started = time.perf_counter()
        OfflineTrainer(
            loss,
            dataset.replay_buffer(256, seed=stretch),
            total_updates=min(SAVE_EVERY, options.updates - updater.counter),
            stepper=stepper,
            target_updater=updater,
        ).train()
        seconds += time.perf_counter() - started
        saved = {
            "loss": loss.state_dict(),
            "stepper": stepper.state_dict(),
            "updates": updater.counter,
            "seconds": seconds,
        }
        write_atomic(state, lambda path, saved=saved: torch.save(saved, path))  # type: ignore[misc]
    return seconds


@torch.no_grad()
def returns(loss: DiffusionQLLoss, select: str, device: str) -> list[float]:
    """Returns of the same episodes, stepped side by side with one call of the policy a step.

    Args:
        loss: holds the trained networks.
        select: ``"drawn"``: one sample of the policy; ``"deterministic"``: one without noise;
            ``"ranked"``: of ``CANDIDATES`` samples, the one with the best lower target value.
        device: of the networks.
    """
    environments = [gymnasium.make("Hopper-v4") for _ in range(EPISODES)]
    observations = np.stack(
        [environment.reset(seed=10_000 + i)[0] for i, environment in enumerate(environments)]
    )
    totals = np.zeros(EPISODES)
    running = np.ones(EPISODES, dtype=np.bool_)
    generator = torch.Generator(device).manual_seed(0)
    bar = tqdm(total=1000, desc=f"evaluate {select}", unit="step", mininterval=5)
    actor = loss.actor_network
    with bar, loss.actor_network_params.data.to_module(actor, preserve_module_state=False):
        while running.any():
            rows = np.flatnonzero(running)
            observation = torch.from_numpy(observations[rows]).float().to(device)
            copies = CANDIDATES if select == "ranked" else 1
            condition = actor.module.condition(observation).expand(copies, -1, -1)
            deterministic = select == "deterministic"
            actions = actor.module.sample(
                condition, deterministic=deterministic, generator=generator
            )
            if copies == 1:
                action = actions[0]
            else:
                best = target_values(loss, observation, actions).argmax(0)
                action = actions[best, torch.arange(len(rows), device=device)]
            for row, row_action in zip(rows, action.cpu().numpy(), strict=True):
                result = environments[row].step(row_action)
                observations[row] = result[0]
                totals[row] += float(result[1])
                running[row] = not (result[2] or result[3])
            bar.update()
    for environment in environments:
        environment.close()
    return totals.tolist()


def target_values(
    loss: DiffusionQLLoss, observation: torch.Tensor, action: torch.Tensor
) -> torch.Tensor:
    """The lower target critic's values of candidates ``[n, rows, A]``: ``[n, rows]``."""
    values = []
    inputs = TensorDict(
        {"observation": observation.expand(*action.shape[:-1], -1), "action": action},
        batch_size=action.shape[:-1],
    )
    for index in range(loss.num_qvalue_nets):
        params = loss.target_qvalue_network_params[index].data
        with params.to_module(loss.qvalue_network, preserve_module_state=False):
            values.append(loss.qvalue_network(inputs.clone())["state_action_value"].squeeze(-1))
    return torch.stack(values).amin(0)


def run_one(dataset: OfflineDataset, seed: int, lmbda: float, options: Options) -> Path:
    """Train and evaluate one seed of one arm, unless its result is stored already."""
    data = Path(options.data)
    name = f"{data.stem}-{options.guidance}-lmbda{lmbda:g}-seed{seed}-{options.updates}"
    path = Path(options.store) / f"{name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"returns": {}}
    missing = [select for select in SELECTIONS if select not in stored["returns"]]
    if not missing:
        print(f"{name}: stored")
        return path
    STATES.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    loss = build(dataset, lmbda, options)
    seconds = train(loss, dataset, seed, STATES / f"{name}.pt", options)
    totals = stored["returns"] | {
        select: returns(loss, select, options.device) for select in missing
    }
    write_json(
        path,
        {
            "data": data.name,
            "data_hash": dataset.manifest.data_hash,
            "seed": seed,
            "lmbda": lmbda,
            "guidance": options.guidance,
            "updates": options.updates,
            "train_seconds": seconds,
            "device": options.device,
            "threads": torch.get_num_threads(),
            "returns": totals,
            "score": {
                select: normalized_score("hopper", statistics.mean(values))
                for select, values in totals.items()
            },
        },
    )
    return path


def figures(paths: list[Path]) -> dict[str, float]:
    """All figures, from the stored files."""
    runs = [json.loads(path.read_text()) for path in paths]
    lmbdas = sorted({run["lmbda"] for run in runs})
    result: dict[str, float] = {}
    for select in SELECTIONS:
        scores = {(run["lmbda"], run["seed"]): run["score"][select] for run in runs}
        for (lmbda, seed), score in sorted(scores.items()):
            result[f"score_{select}_lmbda{lmbda:g}_seed{seed}"] = score
        for lmbda in lmbdas:
            mean = statistics.mean(score for key, score in scores.items() if key[0] == lmbda)
            result[f"score_{select}_lmbda{lmbda:g}"] = mean
        for lmbda in lmbdas[1:]:
            pairs = [
                (scores[lmbda, seed], scores[lmbdas[0], seed])
                for weight, seed in scores
                if weight == lmbda and (lmbdas[0], seed) in scores
            ]
            result[f"wins_{select}_lmbda{lmbda:g}"] = sum(a > b for a, b in pairs)
            result[f"pairs_{select}_lmbda{lmbda:g}"] = len(pairs)
    for lmbda in lmbdas:
        seconds = [run["train_seconds"] for run in runs if run["lmbda"] == lmbda]
        result[f"train_seconds_lmbda{lmbda:g}"] = statistics.mean(seconds)
    return result


def run(options: Options) -> None:
    """Run what is missing, and write the figures unless the results are stored elsewhere.

    Raises:
        ConfigError: without a file to train on, and on an unknown guidance.
    """
    if not options.data:
        raise ConfigError("hopper needs data=FILE, a D4RL-layout .hdf5 file to train on")
    if options.guidance not in GUIDANCE_MODES:
        modes = ", ".join(GUIDANCE_MODES)
        raise ConfigError(f"guidance is {options.guidance!r}: use one of {modes}")
    dataset = OfflineDataset.from_recordings([read_d4rl_file(Path(options.data))])
    paths = [
        run_one(dataset, seed, lmbda, options) for seed in options.seeds for lmbda in options.lmbda
    ]
    if Path(options.store) == STORED:
        raw = {path.stem: f"hopper/{path.name}" for path in paths}
        command = f"python -m benchmarks.studies hopper data={Path(options.data).name}"
        write_figures("hopper", figures(paths), raw, command)


def check() -> int:
    """Compare the committed figures with the stored files; returns the exit code."""
    committed = json.loads((RESULTS / "hopper_raw.json").read_text())
    paths = [RESULTS / name for name in committed.values()]
    return check_figures("hopper", figures(paths), tolerance=1e-9)
