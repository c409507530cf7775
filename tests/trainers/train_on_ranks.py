"""What ``test_ranks.py`` runs under torchrun: a training, whose networks it saves for each rank.

    torchrun --nproc-per-node N train_on_ranks.py FOLDER BATCH

Batches are the same rows for any number of ranks, which share them, and nothing is random.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.objectives.guidance import ChainGuidance
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, OfflineTrainer
from llmdpd_torchrl.trainers.ranks import all_ranks, join_ranks

UPDATES = 6


class _Still(ChainGuidance):
    def next_action(self, process, condition, num_steps):
        return process.sample(condition, deterministic=True)


def _add_noise(action, step):
    noise = torch.sin(37 * action)
    return 0.8 * action + 0.6 * noise, noise


def main(folder: str, batch: int) -> None:
    with join_ranks(torch.device("cpu")) as mine:
        torch.manual_seed(0)
        rows = UPDATES * batch
        done = torch.rand(rows, 1) < 0.1
        after = {"observation": torch.randn(rows, 3), "reward": torch.randn(rows, 1)}
        after |= {"terminated": done, "done": done}
        data = {"observation": torch.randn(rows, 3), "action": torch.rand(rows, 2) * 2 - 1}
        shared = TensorDict({**data, "next": after}, [rows]).reshape(UPDATES, mine.size, -1)
        part = shared[:, mine.rank].reshape(-1)
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(len(part)),
            sampler=SamplerWithoutReplacement(shuffle=False),
            batch_size=batch // mine.size,
        )
        buffer.extend(part)
        torch.manual_seed(1 + mine.rank)  # the first rank's networks are everybody's
        actor = DiffusionActor(2, 3, hidden=(16,), num_steps=1, in_keys=["observation"])
        critics = make_qvalue_networks(3, 2, hidden=(16,))
        loss = DiffusionQLLoss(actor, critics, lmbda=0.0, guidance=_Still())
        loss.actor_network.module.add_noise = _add_noise
        stepper = OfflineOptimizationStepper(loss, learning_rate=0.01, max_grad_norm=0.5)
        trainer = OfflineTrainer(
            loss, buffer, total_updates=UPDATES, stepper=stepper, progress_bar=False
        )
        trainer.train()
        state = {key: value.clone() for key, value in loss.state_dict().items()}
        save_file(state, Path(folder) / f"{mine.size}-{mine.rank}.safetensors")
        assert all_ranks(mine.rank) == [*range(mine.size)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
