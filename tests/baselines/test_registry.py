"""Every algorithm trains what it says, on its own parts, by name and by the same trainer."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llmdpd_torchrl.baselines import ALGORITHMS, get_algorithm
from llmdpd_torchrl.modules import NetworkConfig
from llmdpd_torchrl.utils.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
COMMON = {"gamma": 0.99, "reward_scale": 1.0}
FILES = sorted(path.stem for path in (CONFIGS / "algorithm").glob("*.yaml"))


def configuration(name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train_metaworld", [f"algorithm={name}", *overrides])


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_fits_its_algorithm(name):
    cfg = configuration(name)
    network = {key: cfg.network[key] for key in ("actor", "conditioning")}
    config = NetworkConfig(prompt=cfg.prompt, **network)
    get_algorithm(cfg.algorithm).check(cfg.algorithm, config, OmegaConf.to_container(cfg.loss))


def test_every_algorithm_has_a_configuration():
    assert {configuration(name).algorithm for name in FILES} == set(ALGORITHMS)


def test_mistakes():
    with pytest.raises(ConfigError, match="algorithm is 'sac': use one of llmdpd, "):
        get_algorithm("sac")
    none = NetworkConfig(prompt="none")
    with pytest.raises(ConfigError, match=r"network\.actor is 'diffusion': algorithm=iql trains g"):
        ALGORITHMS["iql"].check("iql", none, {})
    told = NetworkConfig(prompt="text", actor="gaussian")
    with pytest.raises(ConfigError, match="prompt is 'text': algorithm=iql reads none"):
        ALGORITHMS["iql"].check("iql", told, {})
    for name, setting in (("llmdpd", "lambda"), ("bc", "alpha"), ("diffusion_ql", "eta")):
        config = NetworkConfig(prompt="none", actor=ALGORITHMS[name].actors[0])
        with pytest.raises(
            ConfigError, match=rf"loss\.{setting}: there is no such setting; loss has "
        ):
            ALGORITHMS[name].check(name, config, COMMON | {setting: 1.0})


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("llmdpd", "lmbda", "much", "a valid number"),
        ("llmdpd", "lmbda", float("nan"), "a finite number"),
        ("llmdpd", "lmbda", -0.1, "greater than or equal to 0"),
        ("llmdpd", "guidance", "two_step", "'chain' or 'one_step'"),
        ("diffusion_ql", "target_sampling_steps", 1.5, "a valid integer"),
        ("llmdpd", "reduction", [1], "'none', 'mean' or 'sum'"),
        ("llmdpd", "gamma", 1.5, "less than or equal to 1"),
        ("iql", "deactivate_vmap", 1, "a valid boolean"),
        ("iql", "expectile", 1.0, "less than 1"),
        ("cql", "num_random", None, "a valid integer"),
        ("td3_bc", "actor_every", 0, "greater than or equal to 1"),
    ],
)
def test_settings_of_the_wrong_type(name, setting, value, expected):
    config = NetworkConfig(prompt="none", actor=ALGORITHMS[name].actors[0])
    with pytest.raises(ConfigError, match=rf"^loss\.{setting} is .*: it must be {expected}$"):
        ALGORITHMS[name].check(name, config, COMMON | {setting: value})


@pytest.mark.parametrize("name", ["diffusion_ql", "td3_bc", "iql", "bc"])
def test_only_the_critics_targets_follow_at_another_rate(name):
    algorithm = get_algorithm(name)
    found = algorithm.schedules_with(0.02)
    assert set(found) == set(algorithm.schedules)
    for network, schedule in found.items():
        before = algorithm.schedules[network]
        is_critic = network == "qvalue_network"
        assert schedule == (before._replace(tau=0.02) if is_critic else before)
