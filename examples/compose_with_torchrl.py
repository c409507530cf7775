"""Mix parts of this package and of TorchRL freely, on Pendulum: a few seconds on one core.

First our diffusion actor acts in TorchRL's collector and is trained under TorchRL's loss; then
TorchRL's is trained under our Diffusion-QL loss, with TorchRL's target updater and trainer.
"""

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import ActionScaling, GymEnv, TransformedEnv
from torchrl.modules import DiffusionActor as TorchRLDiffusionActor
from torchrl.objectives import DiffusionBCLoss, SoftUpdate
from torchrl.trainers import DefaultOptimizationStepper, ReplayBufferTrainer, Trainer

from llmdpd_torchrl import DiffusionActor, DiffusionQLLoss
from llmdpd_torchrl.modules import make_qvalue_networks

FRAMES, BATCH = 400, 64


def collect(env: TransformedEnv, actor: torch.nn.Module) -> Collector:
    """TorchRL's collector; it explores, so a diffusion actor of either kind samples."""
    options = {"frames_per_batch": 100, "total_frames": FRAMES}
    return Collector(env, actor, auto_register_policy_transforms=False, **options)


def ours_in_torchrl(env: TransformedEnv) -> list[float]:
    """Collect with our actor and clone what it did; return the losses."""
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(FRAMES), batch_size=BATCH)
    actor = DiffusionActor(1, 3, in_keys=["observation"], spec=env.action_spec)
    for data in collect(env, actor):
        buffer.extend(data)
    loss = DiffusionBCLoss(actor)  # our inner module offers what TorchRL's losses ask of theirs
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    losses = []
    for _ in range(100):
        value = loss(buffer.sample())["loss_diffusion_bc"]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def torchrl_in_ours(env: TransformedEnv) -> TorchRLDiffusionActor:
    """Train TorchRL's actor by Diffusion-QL while it collects; return it."""
    actor = TorchRLDiffusionActor(action_dim=1, obs_dim=3, num_steps=5, spec=env.action_spec)
    adapted = DiffusionActor.from_torchrl(actor)  # the same score network in ours
    loss = DiffusionQLLoss(adapted, make_qvalue_networks(3, 1), lmbda=0.1)
    loss.make_value_estimator(gamma=0.95)
    trainer = Trainer(
        collector=collect(env, actor),  # loss and actor share parameters: no weights to send
        total_frames=FRAMES,
        frame_skip=1,
        optim_steps_per_batch=10,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=3e-4),
        optimization_stepper=DefaultOptimizationStepper(["loss_actor", "loss_qvalue"]),
        progress_bar=False,
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(FRAMES), batch_size=BATCH)
    replay = ReplayBufferTrainer(buffer)
    trainer.register_op("batch_process", replay.extend)
    trainer.register_op("process_optim_batch", replay.sample)
    # One rate for actor and critics; our TargetUpdater would give each a schedule of its own.
    trainer.register_op("post_optim", SoftUpdate(loss, tau=0.005).step)
    trainer.train()
    return actor


if __name__ == "__main__":
    torch.manual_seed(0)
    # Actions in [-1, 1]: the diffusion's noise has one scale, which suits that range.
    pendulum = TransformedEnv(GymEnv("Pendulum-v1"), ActionScaling())
    values = ours_in_torchrl(pendulum)
    print(f"our actor, TorchRL's loss: {values[0]:.2f} at first, {values[-1]:.2f} at last")
    start = torchrl_in_ours(pendulum)(pendulum.reset())
    print(f"TorchRL's actor, our loss: first action {start['action'].item():.2f}")
