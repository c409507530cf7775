"""Diffusion-QL as a textbook has it beside this library's loss: ``results/textbook.json``.

    python -m benchmarks.studies textbook data=FOLDER
    python -m benchmarks.studies textbook data=FOLDER file=hopper_medium_replay 'seeds=[0]'

Both sides train on the same file with Diffusion-QL's settings (three layers of 256, Mish, noise
prediction, five steps, guidance through the chain, Adam at a constant rate), the one by
``benchmarks/speed/textbook.py``, the other by :class:`~llmdpd_torchrl.objectives.DiffusionQLLoss`
and this library's trainer, and are evaluated alike, by samples, every ``every`` updates. If their
curves differ by more than their seeds do, one of the two has a fault. A run, one side and one seed,
is stored in ``results/textbook/`` and not made again; one that is killed begins again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, check_figures, write_figures
from benchmarks.speed.textbook import Batch, DiffusionPolicy, TextbookDiffusionQL
from llmdpd_torchrl.data import OfflineDataset, load_episodes
from llmdpd_torchrl.envs import Dynamics
from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator
from llmdpd_torchrl.experiments.locomotion import level_protocol
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, OfflineTrainer, TargetUpdater
from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import write_json

STORED = RESULTS / "textbook"
BATCH = 256
GAMMA = 0.99
LEARNING_RATE = 3e-4
#: A side: trains, and yields the policy after every ``every`` updates.
Training = Callable[[OfflineDataset, int, "Options"], Iterator[LLMDPDPolicy]]


@dataclass
class Options:
    """Settings of the study."""

    data: str = ""
    file: str = "halfcheetah_medium_replay"
    updates: int = 26_000
    every: int = 6_500
    seeds: Sequence[int] = (0, 1, 2)
    sides: Sequence[str] = ("textbook", "library")
    eta: float = 1.0
    max_grad_norm: float = 5.0
    width: int = 256
    episodes: int = 10
    store: str = str(STORED)


class TextbookActor(TensorDictModuleBase):
    """The textbook's policy as a module that an evaluation can call."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, policy: DiffusionPolicy, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.in_keys, self.out_keys = ["observation"], ["action"]

    @dispatch(auto_batch_size=False)
    def forward(
        self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Sample an action; a generator seeds torch's own, which the textbook reads."""
        state = (tensordict["observation"] - self.mean) / self.std
        with torch.random.fork_rng():
            if generator is not None:
                device = generator.device
                seed = torch.randint(2**62, (), generator=generator, device=device)
                torch.manual_seed(int(seed))
            return tensordict.set("action", self.policy.sample(state))


def _config(dataset: OfflineDataset, width: int) -> NetworkConfig:
    fields = dataset.manifest.observation_layout["fields"]
    return NetworkConfig(
        prompt="none",
        conditioning="pooled",
        retrieval=None,
        observation_fields=fields,
        observation_keep=tuple(fields),
        action_dim=dataset.manifest.action_size,
        hidden=(width,) * 3,
        activation="mish",
        prediction="epsilon",
    )


def train_textbook(dataset: OfflineDataset, seed: int, options: Options) -> Iterator[LLMDPDPolicy]:
    """Train by the textbook's own loop."""
    data = dataset.transitions
    state, after = data["observation"], data["next", "observation"]
    mean, std = state.mean(0), state.std(0).clamp_min(1e-3)
    state, after = (state - mean) / std, (after - mean) / std
    action, reward = data["action"], data["next", "reward"]
    not_done = 1.0 - data["next", "terminated"].float()
    generator = torch.Generator().manual_seed(seed)
    model = TextbookDiffusionQL(
        state.shape[-1], action.shape[-1], width=options.width, eta=options.eta, gamma=GAMMA,
        learning_rate=LEARNING_RATE, max_grad_norm=options.max_grad_norm,
    )  # fmt: skip
    policy = LLMDPDPolicy(
        _config(dataset, options.width), TextbookActor(model.actor, mean, std), None
    )
    for update in tqdm(range(1, options.updates + 1), desc=f"textbook, seed {seed}"):
        rows = torch.randint(len(state), (BATCH,), generator=generator)
        model.update(Batch(state[rows], action[rows], after[rows], reward[rows], not_done[rows]))
        if update % options.every == 0:
            yield policy


def train_library(dataset: OfflineDataset, seed: int, options: Options) -> Iterator[LLMDPDPolicy]:
    """Train by this library's loss and trainer."""
    config = _config(dataset, options.width)
    networks = make_networks(config, observations=dataset.transitions["observation"])
    loss = DiffusionQLLoss(
        networks.actor, networks.qvalues, lmbda=options.eta, deactivate_vmap=True
    )
    loss.make_value_estimator(gamma=GAMMA)
    stepper = OfflineOptimizationStepper(
        loss, learning_rate=LEARNING_RATE, max_grad_norm=options.max_grad_norm
    )
    updater = TargetUpdater(loss)
    policy = LLMDPDPolicy.from_networks(config, networks)
    for part in range(options.updates // options.every):
        buffer = dataset.replay_buffer(BATCH, seed=1000 * seed + part)
        OfflineTrainer(
            loss, buffer, total_updates=options.every, stepper=stepper, target_updater=updater
        ).train()
        yield policy


SIDES: dict[str, Training] = {"textbook": train_textbook, "library": train_library}


def run_one(side: str, seed: int, options: Options) -> Path:
    """Train and evaluate one seed of one side, unless that is stored.

    Raises:
        DataError: if an episode crashed: it says nothing about the policy.
    """
    name = f"{options.file}-eta{options.eta:g}-{side}-seed{seed}-{options.updates}"
    path = Path(options.store) / f"{name}.json"
    if path.exists():
        print(f"{name}: stored")
        return path
    source = Path(options.data) / f"{options.file}.hdf5"
    protocol = level_protocol([str(source)], [])
    dataset = load_episodes([str(source)], progress=False)
    (task,) = protocol.split.train
    settings = EvaluationSettings(episodes_per_task=options.episodes, seed=seed, acting="sampled")
    curve: list[dict[str, Any]] = []
    begun = time.monotonic()
    torch.manual_seed(seed)
    suite = protocol.suite(seed, None, Dynamics())
    with Evaluator([task], settings, suite=suite, workers=1, progress=False) as evaluator:
        for policy in SIDES[side](dataset, seed, options):
            seconds = time.monotonic() - begun
            episodes = evaluator(policy, PromptTables())
            if crashed := [episode.error for episode in episodes if episode.error is not None]:
                raise DataError(f"{name}: {len(crashed)} episodes crashed: {crashed[0]}")
            scores = [episode.score for episode in episodes if episode.score is not None]
            updates = options.every * (len(curve) + 1)
            curve.append({"updates": updates, "scores": scores, "seconds": round(seconds, 1)})
            print(f"{name}: {updates} updates, score {statistics.mean(scores):.1f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"file": options.file, "side": side, "seed": seed, "eta": options.eta}
    write_json(path, {**about, "data_hash": dataset.manifest.data_hash, "curve": curve})
    return path


def figures(paths: Sequence[Path]) -> dict[str, float]:
    """By file and side, the mean score at each place of the curve, and of each seed at its end."""
    found: dict[str, float] = {}
    curves: dict[tuple[str, str, int], list[float]] = {}
    for path in paths:
        run = json.loads(path.read_text())
        for place in run["curve"]:
            score = statistics.mean(place["scores"])
            curves.setdefault((run["file"], run["side"], place["updates"]), []).append(score)
        found[f"{run['file']}_{run['side']}_seed{run['seed']}"] = score
    for (file, side, updates), scores in curves.items():
        found[f"{file}_{side}_{updates}"] = statistics.mean(scores)
    return found


def run(options: Options) -> None:
    """Run what is missing, and write the figures unless the results are stored elsewhere.

    Raises:
        ConfigError: without a folder of files, or on an unknown side.
    """
    if not (Path(options.data) / f"{options.file}.hdf5").is_file():
        raise ConfigError(f"textbook needs data=FOLDER, in which {options.file}.hdf5 is")
    if unknown := [side for side in options.sides if side not in SIDES]:
        raise ConfigError(f"sides has {unknown[0]!r}: use some of {', '.join(SIDES)}")
    for seed in options.seeds:
        for side in options.sides:
            run_one(side, seed, options)
    if Path(options.store) == STORED:
        paths = sorted(STORED.glob("*.json"))
        raw = {path.stem: f"textbook/{path.name}" for path in paths}
        command = "python -m benchmarks.studies textbook data=FOLDER"
        write_figures("textbook", figures(paths), raw, command)


def check() -> int:
    """Compare the committed figures with the stored files, if any; returns the exit code."""
    paths = sorted(STORED.glob("*.json"))
    return check_figures("textbook", figures(paths), tolerance=1e-9) if paths else 0
