"""Train LLM-Driven Policy Diffusion on Meta-World and evaluate it on seen and unseen tasks.

collect -> embed -> train -> evaluate -> film -> report; a stage whose output exists is skipped.
Run with ``--help`` for the settings, which live in ``configs/``. What the stages do is in
``llmdpd_torchrl/experiments``; ``compose_with_torchrl.py`` beside this file puts the parts together
by hand.
"""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_metaworld")
def main(cfg: DictConfig) -> None:
    """Run all stages."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.metaworld import MetaWorld
    from llmdpd_torchrl.experiments.run import run_experiment

    sys.exit(run_experiment(cfg, MetaWorld()))


if __name__ == "__main__":
    main()
