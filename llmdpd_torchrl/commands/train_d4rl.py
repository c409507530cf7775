"""``llmdpd train-d4rl``: a run on recorded locomotion, settings in ``configs/train_d4rl.yaml``."""

from omegaconf import DictConfig

from llmdpd_torchrl.experiments.command import hydra_command


def _check(cfg: DictConfig) -> None:
    from llmdpd_torchrl.experiments.locomotion import Locomotion
    from llmdpd_torchrl.experiments.run import check_settings

    check_settings(cfg, Locomotion())


@hydra_command("train_d4rl", check=_check)
def main(cfg: DictConfig) -> float:
    """Run all stages and return the mean result, which a sweep can optimise."""
    # Not above: worker processes import this file too, and `--help` should not wait for torch.
    from llmdpd_torchrl.experiments.locomotion import Locomotion
    from llmdpd_torchrl.experiments.run import run_experiment

    return run_experiment(cfg, Locomotion())
