"""Train LLM-Driven Policy Diffusion on Meta-World and evaluate it on seen and unseen tasks.

collect -> embed -> train -> evaluate -> video -> report; a stage whose output exists is skipped.
Run with ``--help`` for the settings, which live in ``configs/``. What the stages do is in
``llmdpd_torchrl/experiments``; ``llmdpd_by_hand.py`` beside this file puts the parts together
by hand.
"""

import sys

from omegaconf import DictConfig

from llmdpd_torchrl.experiments.command import hydra_command


@hydra_command("../configs", "train_metaworld")
def main(cfg: DictConfig) -> float:
    """Run all stages and return the mean result, which a sweep can optimise."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.metaworld import MetaWorld
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, MetaWorld())


if __name__ == "__main__":
    sys.exit(main())
