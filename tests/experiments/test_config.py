"""Settings: their names, types and ranges are checked before any work, each in one line."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
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


def test_all_mistakes_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistakes = ["optim.batch_size=0", "seed=-1", "network.critics=0", "loss.gamma=1.5",
                "+optim.weight_decay=0.1", "logger.kind=[csv]"]  # fmt: skip
    fits_not = ["device=gpu", "evaluation.every=30", "tasks.train=[reech-v3]", "data.use_noise=0.5",
                "logger.kind=paper"]  # fmt: skip
    for given in (mistakes, fits_not):
        with pytest.raises(ConfigError) as caught:
            prepared(*given)
        lines = str(caught.value).splitlines()
        assert len(lines) == len(given)
        for override in given:
            key, _, value = override.lstrip("+").partition("=")
            assert any(key in line or value.strip("[]") in line for line in lines), key
    assert not list(tmp_path.iterdir())


def test_a_group_on_the_command_line_replaces_the_presets_choice():
    cfg = compose("network=paper", "evaluation=thorough", "task_suite=ml45")
    assert (cfg.preset_name, cfg.network.hidden, cfg.network.activation) == (
        "smoke", [256, 256, 256], "mish",
    )  # fmt: skip
    assert (cfg.evaluation.episodes_per_task, cfg.tasks.split) == (25, "ml45")
    assert compose("preset=ml45").tasks.split == "ml45"
    assert compose("preset=quick").tasks.split == "ml10"
    assert compose("preset=ml45", "task_suite=ml45_validation").tasks.split == "ml45_validation"


def test_conditioning_carries_the_prompts_sizes_of_meta_world():
    for conditioning, sizes in (("retrieved", (160, 8)), ("pooled", (32, 2))):
        cfg = compose("preset=quick", f"conditioning={conditioning}")
        prompt = cfg.trajectory_prompt
        assert cfg.network.conditioning == conditioning
        assert (prompt.length, prompt.per_task) == sizes
    experiment = compose("preset=quick", "+experiment=pooled")
    assert experiment.trajectory_prompt == prompt
    assert compose("conditioning=retrieved", name="train_d4rl").trajectory_prompt.per_task == 2


def test_text_encoders_have_options():
    from llmdpd_torchrl.experiments.config import text_encoder
    from llmdpd_torchrl.prompts import make_text_encoder

    assert text_encoder(compose()) == "smollm2"  # as policies and fingerprints have it
    cfg = compose("text_encoder=olmo-1b", "text_encoder.pooling=last_token")
    assert text_encoder(cfg) == {"model": "olmo-1b", "pooling": "last_token"}
    assert make_text_encoder(text_encoder(cfg)).pooling == "last_token"
    cfg = compose("text_encoder.model=owner/name", "text_encoder.skip_first=false")
    assert make_text_encoder(text_encoder(cfg)).skip_first is False


@pytest.mark.parametrize("name", FAMILIES)
def test_every_choice_of_a_group_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["data.sources=[hopper-medium-v2]"] if name == "train_d4rl" else []
    groups = ["network", "optim", "trainer", "evaluation", "conditioning", "text_encoder"]
    groups += ["task_suite"] if name == "train_metaworld" else []
    for group in groups:
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            if (name, path.stem) != ("train_metaworld", "oracle"):  # a number of locomotion's
                prepared(f"{group}={path.stem}", *given, name=name)


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


@pytest.mark.parametrize(
    ("name", "experiments"),
    [
        ("train_metaworld", ["pooled", "comparison/pooled", "unseen_validation/retrieved"]),
        ("train_d4rl", ["pooled", "oracle", "d4rl_paper"]),
    ],
)
def test_presets_with_experiments_have_folders_of_their_own(name, experiments):
    folders = {}
    for preset, experiment, other in itertools.product(
        ([], ["preset=smoke"], ["preset=quick"]),
        ([], *([f"+experiment={experiment}"] for experiment in experiments)),
        ([], ["conditioning=retrieved"]),
    ):
        cfg = plain(compose_settings(name, [*preset, *experiment, *other]))
        folder = cfg.pop("output_dir")
        del cfg["name"], cfg["changes"]
        assert folders.setdefault(folder, cfg) == cfg
    assert len(folders) >= 16


def lines_of_commands():
    """What README.md and the help of both commands call, without the name of the command."""
    text = (CONFIGS.parent / "README.md").read_text()
    text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    for name in FAMILIES:
        text += "\n" + OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.header
    commands = {
        "train_d4rl": r"llmdpd train-d4rl|python examples/train_d4rl\.py",
        "train_metaworld": r"llmdpd train(?!-)|python examples/train_metaworld\.py",
    }
    for name, command in commands.items():
        for given in re.findall(f"(?:{command})(.*)", text):
            if "--help" not in given:
                yield name, shlex.split(given, comments=True)


def test_no_two_lines_of_the_readme_write_to_one_folder():
    found = {}
    lines = list(lines_of_commands())
    assert len(lines) > 15
    for name, given in lines:
        if "hydra/sweeper=tune" in given:  # which adds what it varies
            given = [item for item in given if "hydra" not in item] + [
                "optim.learning_rate=0.00017"
            ]
        given = [item for item in given if item != "-m" and not item.startswith("hydra/launcher")]
        parsed = OverridesParser.create().parse_overrides(given)
        values = (
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [o.input_line]
            for o in parsed
        )
        for overrides in itertools.product(*values):
            cfg = compose_settings(name, overrides)
            other = found.setdefault(cfg.output_dir, cfg)
            assert cfg == other, f"{given} and another line write other results to {cfg.output_dir}"


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
