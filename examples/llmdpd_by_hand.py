"""LLM-Driven Policy Diffusion put together by hand: data, prompts, loss, loop, a prompted rollout.

The paper's form of the method (prompts pooled into one vector z) on two Meta-World tasks; the
policy is then prompted with a third that it was not trained on. Under a minute on one core, so its
numbers say nothing about quality: examples/train_metaworld.py is the real job, docs/method.md says
which equation is where.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.transforms import Transform

from llmdpd_torchrl import DiffusionActor, LLMDPDLoss, TrajectoryDataset
from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.modules import (
    ObservationConditioner,
    ObservationFeatures,
    PromptEncoder,
    PromptNetwork,
    TextHead,
    TrajectoryEncoder,
    make_qvalue_networks,
)
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.trainers import TargetUpdater
from llmdpd_torchrl.transforms import (
    PromptEmbeddingTransform,
    TextPromptTransform,
    TrajectoryPromptTransform,
)

TRAINED, UNSEEN = ["reach-v3", "window-open-v3"], "window-close-v3"
LENGTH, UPDATES, STEPS = 16, 200, 100


def collect(folder: Path, tasks: list[str]) -> TrajectoryDataset:
    """Three episodes of each task by Meta-World's scripted experts."""
    settings = CollectionSettings(episodes_per_task=3, noise_levels=(0.0, 0.1))
    collect_metaworld(folder, tasks, settings, workers=1, progress=False)
    return TrajectoryDataset.load(folder, tasks)


def make_prompts(dataset: TrajectoryDataset) -> tuple[PromptTables, list[Transform]]:
    """The prompts of all tasks, and what writes their rows into a transition or an episode."""
    text = text_embedding_table(dataset.manifest.task_table)  # [T, D], by task id
    demonstrations = TrajectoryPromptBank.from_dataset(dataset, LENGTH)
    transforms = [TextPromptTransform(text), TrajectoryPromptTransform(demonstrations)]
    return PromptTables(text, demonstrations), transforms


def train(dataset: TrajectoryDataset, encoder: PromptEncoder, actor: DiffusionActor) -> None:
    """L = L_d - λ L_r and L_q, by a plain loop."""
    tables, transforms = make_prompts(dataset)
    buffer = dataset.replay_buffer(64, transforms=transforms, seed=0)
    critics = make_qvalue_networks(39, 4, encoder.embedding_dim, hidden=(64, 64))
    loss = LLMDPDLoss(PromptNetwork(encoder, tables), actor, critics, lmbda=0.1)
    loss.make_value_estimator(gamma=0.99)
    targets = TargetUpdater(loss)
    optimizer = torch.optim.Adam(loss.parameters(), lr=6e-4)
    for update in range(UPDATES):
        losses = loss(buffer.sample())
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        optimizer.step()
        targets.step()
        if update % 50 == 49:
            print(f"update {update + 1}: L_d {losses['bc']:.3f}, L_q {losses['loss_qvalue']:.3f}")


def act(demonstrations: TrajectoryDataset, encoder: PromptEncoder, actor: DiffusionActor) -> float:
    """One episode of a task that was not trained on, by its text and one demonstration."""
    tables, transforms = make_prompts(demonstrations)
    network = PromptNetwork(encoder, tables)
    embedding = PromptEmbeddingTransform(network, encoder.embedding_dim)  # z, once at the reset
    env = TransformedEnv(MetaWorldEnv(UNSEEN), Compose(*transforms, embedding))
    return env.rollout(STEPS, actor)["next", "reward"].sum().item()


def main(folder: Path) -> float:
    """Collect, train, act; return the return of the unseen task's episode."""
    torch.manual_seed(0)
    dataset = collect(folder / "train", TRAINED)
    observations = dataset.transitions["observation"]
    features = ObservationFeatures({"state": (0, 39)}, keep=["state"]).fit(observations)
    texts = text_embedding_table(TRAINED)  # centres the text; the unseen task takes no part
    encoder = PromptEncoder(TextHead(texts, 16), TrajectoryEncoder(features, 4, LENGTH, 16))
    actor = DiffusionActor(
        action_dim=4,
        condition_dim=39 + encoder.embedding_dim,
        conditioner=ObservationConditioner(features),
        hidden=(128, 128),
    )
    train(dataset, encoder, actor)
    total = act(collect(folder / "unseen", [UNSEEN]), encoder, actor)
    print(f"{UNSEEN}, never trained on: a return of {total:.0f} in {STEPS} steps")
    return total


if __name__ == "__main__":  # collection starts worker processes, which import this file
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
    sys.exit(0)
