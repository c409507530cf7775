"""``llmdpd train``: a run on Meta-World, with the settings of ``configs/train_metaworld.yaml``."""

from omegaconf import DictConfig

from llmdpd_torchrl.experiments.command import hydra_command


def _check(cfg: DictConfig) -> None:
    from llmdpd_torchrl.experiments.metaworld import MetaWorld
    from llmdpd_torchrl.experiments.run import check_settings

    check_settings(cfg, MetaWorld())


@hydra_command("train_metaworld", check=_check)
def main(cfg: DictConfig) -> float:
    """Run all stages and return the mean result, which a sweep can optimise."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.metaworld import MetaWorld
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, MetaWorld())
