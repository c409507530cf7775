"""A short training on synthetic data, with everything that a checkpoint has to bring back.

``python short_training.py FOLDER`` trains, or continues what is in FOLDER, and writes
``final.safetensors``, ``final.json`` and ``metrics.csv`` there. It says ``started`` when the first
update is about to be made.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.transforms import Transform

from llmdpd_torchrl.evaluation import EpisodeResult
from llmdpd_torchrl.evaluation.hook import EvaluationHook
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.objectives import LLMDPDLoss
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.policies.transforms import training_transforms
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.trainers import (
    Checkpointing,
    OfflineTrainer,
    SavedTraining,
    find_checkpoint,
    handle_signals,
    make_logger,
    resume,
)
from llmdpd_torchrl.utils.files import write_atomic, write_json

ROWS, TASKS, TEXT = 256, ("reach-v3", "push-v3"), 8
IDENTITY = {"data_hash": "synthetic"}


class ByWeights:
    """In the evaluator's place: an episode succeeds or not as the actor's weights have it."""

    tasks = TASKS

    def __call__(self, policy: LLMDPDPolicy, *prompts: Any) -> list[EpisodeResult]:
        total = sum(parameter.detach().double().sum() for parameter in policy.actor.parameters())
        score = int(float(total) * 1e6)
        return [
            EpisodeResult(task, goal, bool(score >> (2 * goal + place) & 1), False, 0.0, 5)
            for place, task in enumerate(TASKS)
            for goal in range(8)
        ]


def make_data() -> TensorDict:
    """Random transitions of two tasks."""
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(ROWS, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": torch.randn(ROWS, 39, generator=generator),
            "action": torch.rand(ROWS, 4, generator=generator) * 2 - 1,
            "task_id": torch.randint(2, (ROWS, 1), generator=generator),
            "next": {
                "observation": torch.randn(ROWS, 39, generator=generator),
                "reward": torch.randn(ROWS, 1, generator=generator),
                "terminated": none,
                "done": none.clone(),
            },
        },
        [ROWS],
    )


def make_buffer(
    data: TensorDict, batch_size: int, transforms: Sequence[Transform]
) -> TensorDictReplayBuffer:
    """A replay buffer with a generator of its own."""
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(data)), batch_size=batch_size)
    buffer.extend(data)
    for transform in transforms:
        buffer.append_transform(transform)
    buffer.set_rng(torch.Generator().manual_seed(1))
    return buffer


def build(
    folder: Path,
    *,
    updates: int,
    log_every: int = 20,
    every: int = 20,
    saved: SavedTraining | None = None,
    logger: str = "csv",
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[OfflineTrainer, EvaluationHook]:
    """Trainer, checkpoints and evaluation, all registered, nothing loaded."""
    torch.manual_seed(0)
    config = NetworkConfig(
        prompt="text", text_dim=TEXT, text_features=4, text_dropout=0.2, hidden=[16]
    )
    data = make_data()
    table = torch.randn(2, TEXT)
    networks = make_networks(config, observations=data["observation"], text_embeddings=table)
    policy = LLMDPDPolicy.from_networks(config, networks)
    tables = PromptTables(table)
    buffer = make_buffer(data, 16, training_transforms(policy, tables))
    loss = LLMDPDLoss(
        policy.prompt_network(tables),
        networks.actor,
        networks.qvalues,
        deactivate_vmap=True,
    )
    trainer = OfflineTrainer(
        loss,
        buffer,
        total_updates=updates,
        log_every=log_every,
        logger=make_logger(
            logger, folder, name="short", config={}, resume_step=saved.step if saved else None
        ),
        progress_bar=False,
        **(trainer_options or {}),
    )
    hook = EvaluationHook(
        ByWeights(),  # type: ignore[arg-type]
        policy,
        every=2 * log_every,
        trained_tasks=TASKS[:1],
        best=folder / "best",
    )
    hook.register(trainer)
    options = {"identity": IDENTITY, **options}
    Checkpointing(folder / "checkpoints", every=every, **options).register(trainer)
    return trainer, hook


def train(folder: Path, say: bool = False, **options: Any) -> OfflineTrainer:
    """Train from the beginning, or from the last complete checkpoint, to the end."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # sums are made in one order, in whatever process
    saved = find_checkpoint(folder / "checkpoints", IDENTITY)
    if saved is None:
        (folder / "metrics.csv").unlink(missing_ok=True)  # of a training killed before it saved
    trainer, hook = build(folder, saved=saved, **options)
    if saved is not None:
        resume(trainer, saved)
    if say:
        print("started", trainer.collected_frames, flush=True)
    with handle_signals(trainer):
        trainer.train()
    state = {name: value.clone() for name, value in trainer.loss_module.state_dict().items()}
    write_json(folder / "final.json", {"evaluation": hook.history, "best_value": hook.best_value})
    write_atomic(folder / "final.safetensors", lambda path: save_file(state, path))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    train(options.folder, say=True, updates=options.updates, every=options.every)
