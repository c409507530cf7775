"""Train LLM-Driven Policy Diffusion on recorded locomotion and evaluate it by normalised score.

collect -> embed -> train -> evaluate -> video -> report; a stage whose output exists is skipped.
Run with ``--help`` for the settings, which live in ``configs/``. With no data given, a small
file of a half cheetah at several speeds is generated first.
"""

import sys

from omegaconf import DictConfig

from llmdpd_torchrl.experiments.command import hydra_command


@hydra_command("../configs", "train_d4rl")
def main(cfg: DictConfig) -> float:
    """Run all stages and return the mean result, which a sweep can optimise."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.locomotion import Locomotion
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, Locomotion())


if __name__ == "__main__":
    sys.exit(main())
