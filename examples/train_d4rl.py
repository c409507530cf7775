"""Train LLM-Driven Policy Diffusion on recorded locomotion and evaluate it by normalised score.

collect -> embed -> train -> evaluate -> film -> report; a stage whose output exists is skipped.
Run with ``--help`` for the settings, which live in ``configs/d4rl``. With no data given, a small
file of a half cheetah at several speeds is rolled first.
"""

import sys

from omegaconf import DictConfig

from llmdpd_torchrl.utils.cli import hydra_command


@hydra_command("../configs/d4rl", "train_d4rl")
def main(cfg: DictConfig) -> int:
    """Run all stages."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.locomotion import Locomotion
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, Locomotion())


if __name__ == "__main__":
    sys.exit(main())
