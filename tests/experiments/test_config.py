"""Settings: their names, types and ranges are checked before any work, each in one line."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from llmdpd_torchrl.envs import Dynamics
from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.config import choose_device, plain, read
from llmdpd_torchrl.experiments.locomotion import Locomotion
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import prepare
from llmdpd_torchrl.modules import NetworkConfig
from llmdpd_torchrl.utils.errors import ConfigError, UserError

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = {"train_metaworld": MetaWorld, "train_d4rl": Locomotion}


def compose(*overrides, name="train_metaworld"):
    return compose_settings(name, ["preset=smoke", *overrides])


def prepared(*overrides, name="train_metaworld"):
    return prepare(compose(*overrides, name=name), FAMILIES[name]())


def test_a_group_becomes_its_dataclass():
    cfg = OmegaConf.create({"gravity": 0.5, "mass": "${.gravity}"})
    assert read(Dynamics, cfg, friction=2) == Dynamics(0.5, 0.5, 1.0, 2)
    assert plain(cfg) == {"gravity": 0.5, "mass": 0.5}
    assert read(Dynamics, OmegaConf.create({"gravity": 0.5, "wind": 1})) == Dynamics(0.5)
    nested = NetworkConfig(hidden=[8], sequence={"width": 16})
    assert (nested.hidden, nested.sequence.width) == ((8,), 16)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Dynamics, {"gravity": "low"}, r"dynamics\.gravity is 'low': it must be a valid number"),
        (Dynamics, {"gravity": True}, r"dynamics\.gravity is True"),
        (Dynamics, {"gravity": -1.0}, r"dynamics\.gravity is -1\.0"),
        (Dynamics, {"wind": 1.0}, r"dynamics\.wind: there is no such setting; dynamics has "),
        (
            Dynamics,
            {"masss": 1.0},
            r"dynamics\.masss: there is no such setting; dynamics has mass$",
        ),
        (NetworkConfig, {"sequence": {"width": "x"}}, r"network\.sequence\.width is 'x'"),
        (NetworkConfig, {"hidden": ["x"]}, r"network\.hidden\[0\] is 'x'"),
    ],
)
def test_mistakes_in_a_group(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.batch_size=0"], "optim.batch_size is 0: it must be greater than or equal to 1"),
        (["optim.batch_size=1.5"], "optim.batch_size is 1.5: it must be a valid integer"),
        (["optim.batch_size=null"], "optim.batch_size is None"),
        (["optim.batch_size=true"], "optim.batch_size is True"),
        (["trajectory_prompt.augment=2"], "trajectory_prompt.augment is 2"),
        (["prompt=3"], "prompt is 3: it must be 'both'"),
        (["video.tasks=reach-v3"], "it must be a list, such as 'video.tasks=[first,second]'"),
        (["evaluation.seed=-1"], "evaluation.seed is -1"),
        (["seed=99999999999999999999"], "seed is 99999999999999999999: it must be less than"),
        (["+optim.weight_decay=0.1"], "optim.weight_decay: there is no such setting; optim has "),
        (["+trainer.gradient_steps=5"], "trainer.gradient_steps: there is no such setting"),
        (["+evaluation.episodes=50"], "evaluation.episodes: there is no such setting"),
        (["+data.source=x"], "data.source: there is no such setting"),
        (["+learning_rate=1"], "learning_rate: there is no such setting"),
        (["+loss.unheard=1"], "unheard"),
        (["+network.unheard=1"], "network.unheard: there is no such setting"),
        (["+experiment=steps"], "Could not find 'experiment/steps'"),
        (["loss.guidance=nope"], "nope"),
        (["network.activation=nope"], "nope"),
        (["network.prediction=nope"], "nope"),
        (["loss.gamma=1.5"], "loss.gamma is 1.5"),
        (["loss.reward_scale=0"], "loss.reward_scale is 0"),
        (["loss.target_sampling_steps=50"], "target_sampling_steps is 50"),
        (["optim.learning_rate=-1"], "optim.learning_rate is -1"),
        (["optim.max_grad_norm=0"], "optim.max_grad_norm is 0"),
        (["network.critics=1"], "critics"),
        (["network.diffusion_steps=1"], "steps"),
        (["+network.trajectory_heads=0"], "network.trajectory_heads is 0"),
        (["data.use_noise=0.5"], "data.use_noise is 0.5: no episode is collected with it"),
        (["trajectory_prompt.state_visible_prob=2"], "trajectory_prompt.state_visible_prob is 2"),
        (["trajectory_prompt.per_task=1"], "trajectory_prompt.per_task is 1"),
        (["algorithm=td3_bc", "loss.actor_every=0"], "loss.actor_every is 0"),
        (["algorithm=cql", "loss.num_random=0"], "loss.num_random is 0"),
        (["algorithm=iql", "loss.expectile=2"], "loss.expectile is 2"),
        (["algorithm=iql", "loss.temperature=-1"], "loss.temperature is -1"),
        (["device=gpu"], "device is 'gpu': use auto, cpu, cuda or cuda:N"),
        (["device=cuda:x"], "device is 'cuda:x': use auto, cpu, cuda or cuda:N"),
        (["device=null"], "device is None"),
        (["device=cuda:99"], "device is 'cuda:99': torch sees "),
    ],
)
def test_refused_before_any_work(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        prepared(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_every_algorithm_and_experiment_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in sorted((CONFIGS / "algorithm").glob("*.yaml")):
        prepared(f"algorithm={path.stem}")
    assert prepared("+experiment=pooled").cfg.network.conditioning == "pooled"
    given = ["data.sources=[hopper-medium-v2]"]
    run = prepared(*given, "+experiment=d4rl_paper", name="train_d4rl")
    assert (run.cfg.loss.lmbda, run.cfg.trainer.total_updates) == (1.0, 2_000_000)
    assert (
        prepared(*given, "+experiment=oracle", name="train_d4rl").cfg.text_encoder.model == "oracle"
    )
    for path in sorted((CONFIGS / "dataset").glob("*.yaml")):
        if path.stem != "speeds":  # which generates its data
            prepared(f"dataset={path.stem}", name="train_d4rl")


def test_runs_that_differ_have_folders_of_their_own():
    assert compose().output_dir == "outputs/smoke-both-seed0"
    assert compose(name="train_d4rl").output_dir == "outputs/speeds-smoke-both-seed0"
    same = ["progress=false", "device=cpu", "evaluation.workers=1", "until=train"]
    assert compose(*same).output_dir == "outputs/smoke-both-seed0"
    variants = [
        [], ["loss.lmbda=0"], ["loss.lmbda=0.2"], ["network.conditioning=pooled"], ["seed=1"],
        ["+experiment=pooled"], ["prompt=none"], ["algorithm=llmdpd_paper"], ["algorithm=iql"],
        ["tasks.train=[reach-v3]"], ["tasks.train=[push-v3]"], ["evaluation.control=wrong"],
        ["optim.learning_rate=1e-3"], ["text_encoder=minilm"], ["data.folder=a"], ["data.folder=b"],
    ]  # fmt: skip
    folders = {compose(*overrides).output_dir for overrides in variants}
    assert len(folders) == len(variants)
    assert all("=" not in folder and "[" not in folder for folder in folders)
    one, two = (compose(f"data.sources=[{x}.hdf5]", name="train_d4rl") for x in "ab")
    assert one.output_dir != two.output_dir


def test_the_device_is_chosen_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepared("device=cpu").device == torch.device("cpu")
    is_there = torch.cuda.is_available()
    assert prepared("device=auto").device.type == ("cuda" if is_there else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device is 'cuda': torch sees 0 CUDA devices here"):
        prepared("device=cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="torch sees 2 CUDA devices here"):
        choose_device("cuda:2")
