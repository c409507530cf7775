"""``llmdpd train-own``: a run on tasks of one's own, settings in ``configs/train_own.yaml``."""

from omegaconf import DictConfig

from llmdpd_torchrl.experiments.command import hydra_command


def _check(cfg: DictConfig) -> None:
    from llmdpd_torchrl.experiments.own_family import OwnTasksFamily
    from llmdpd_torchrl.experiments.run import check_settings

    check_settings(cfg, OwnTasksFamily())


@hydra_command("train_own", check=_check)
def main(cfg: DictConfig) -> float:
    """Run all stages and return the mean result, which a sweep can optimise."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.own_family import OwnTasksFamily
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, OwnTasksFamily())
