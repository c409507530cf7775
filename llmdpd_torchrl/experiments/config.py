"""The settings, the families of environments, and the run that its stages hand on.

The YAML files hold the defaults, the schema what each value may be: Hydra's own structured configs
would make 2 a ``true`` and 3 a ``"3"`` without a word, and know no ranges.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from llmdpd_torchrl.evaluation import EvaluationSettings, Suite
from llmdpd_torchrl.evaluation.controls import Control
from llmdpd_torchrl.evaluation.video import rendering_problem
from llmdpd_torchrl.modules.config import NetworkConfig, Prompt
from llmdpd_torchrl.policies.acting import Acting
from llmdpd_torchrl.prompts import (
    PromptTables,
    Spacing,
    TextPrompt,
    TrajectoryPromptBank,
    change_demonstration,
    make_text_encoder,
    text_embedding_table,
    vary_demonstration,
    wordings_table,
)
from llmdpd_torchrl.tasks import TaskSplit
from llmdpd_torchrl.trainers.offline import Compile
from llmdpd_torchrl.trainers.ranks import local_rank
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.parts import package_of
from llmdpd_torchrl.utils.settings import (
    Count,
    Flag,
    Fraction,
    Many,
    Positive,
    Probability,
    Seed,
    Size,
    Text,
    checked_dataclass,
)

Kind = TypeVar("Kind")
AtLeastTwo = Annotated[int, Field(strict=True, ge=2)]


@checked_dataclass()
class TrajectoryPromptSchema:
    """``trajectory_prompt``."""

    length: AtLeastTwo
    per_task: AtLeastTwo
    copies: Size
    state_visible_prob: Probability
    augment: Flag


@checked_dataclass()
class _TextEncoder:
    """``text_encoder``; what its options may be, the encoders say."""

    model: Text
    revision: Any
    layer: Any
    layers: Any
    pooling: Any
    skip_first: Any
    max_length: Any
    device: Any
    device_map: Any
    dtype: Any
    quantization: Any
    batch_size: Any


@checked_dataclass()
class _Optim:
    learning_rate: Positive
    max_grad_norm: Positive | None
    batch_size: Size
    tau: Annotated[float, Field(strict=True, gt=0, le=1)]


@checked_dataclass()
class _Trainer:
    total_updates: Size
    log_every: Size
    save_every: Size
    threads: Size | None
    compile: Compile


@checked_dataclass()
class EvaluationSchema:
    """``evaluation``."""

    episodes_per_task: Size
    max_steps: Size | None
    seed: Seed
    acting: Acting | None
    compare: Many[Acting]
    workers: Size | None
    control: Control
    backend: Text
    every: Count
    every_episodes: Size
    confusion: Count
    demonstrations: Size
    turn: Size | None
    demonstration_fraction: Fraction
    hide_state: Flag


@checked_dataclass()
class _Video:
    tasks: Many[str] | None
    fps: Positive
    every: Size
    width: Size
    height: Size
    during_training: Flag


@checked_dataclass()
class _Logger:
    kind: Text
    wandb_mode: Text | None = None
    wandb_project: Text | None = None


@checked_dataclass()
class Schema:
    """The settings that both families have.

    What ``network`` and ``loss`` may be, their own constructors say.
    """

    seed: Seed
    device: Text
    prompt: Prompt
    text_encoder: _TextEncoder
    progress: Flag
    until: Literal["collect", "embed", "train", "evaluate", "video", "report"]
    resume: Literal["auto", "never"]
    force: Many[Literal["train", "evaluate"]]
    debug: Flag
    algorithm: Text
    trajectory_prompt: TrajectoryPromptSchema
    network: dict[str, Any]
    loss: dict[str, Any]
    optim: _Optim
    trainer: _Trainer
    evaluation: EvaluationSchema
    video: _Video
    logger: _Logger
    preset_name: str
    variant: Any  # made of other settings, of whose mistakes a line is enough
    changes: str
    name: Text
    output_dir: Text


def plain(value: Any) -> Any:
    """A setting without the configuration around it, as JSON has it."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def text_encoder(cfg: DictConfig) -> str | dict[str, Any]:
    """The configured argument of :func:`~llmdpd_torchrl.prompts.make_text_encoder`.

    Options that are null are left out, and a model without options is its name alone.
    """
    given = {key: value for key, value in plain(cfg.text_encoder).items() if value is not None}
    return given["model"] if len(given) == 1 else given


def trusted(cfg: DictConfig) -> set[str]:
    """The packages of the parts of somebody's own that the configuration names."""
    named = (("denoiser", cfg.network.get("denoiser")), ("text encoder", cfg.text_encoder.model))
    packages = (package_of(kind, name) for kind, name in named if name)
    return {package for package in packages if package}


def read(kind: type[Kind], cfg: DictConfig, **more: Any) -> Kind:
    """Make a dataclass of those settings of a group that it has fields for, and of ``more``."""
    names = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in plain(cfg).items() if key in names} | more)


def choose_device(name: str) -> torch.device:
    """The device that ``device`` names; refuses one that this machine has not."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device is {name!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and count and (number := local_rank()):
        name = f"cuda:{number}"
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device is {name!r}: torch sees {count} CUDA devices here; use device=auto, which "
            "takes one if there is one, or device=cpu"
        )
    return device


class Family(abc.ABC):
    """A family of environments: its settings, tasks, data, prompts and simulators."""

    schema: ClassVar[type[Schema]]
    simulator: ClassVar[str]  # the package that evaluations need

    def check(self, cfg: DictConfig) -> None:
        """Check the family's own settings, whose types are right, before any work is done."""
        if cfg.prompt in ("both", "text"):
            make_text_encoder(text_encoder(cfg))

    @abc.abstractmethod
    def split(self, cfg: DictConfig) -> TaskSplit:
        """Name the tasks."""

    def evaluates(self) -> bool:
        """Whether there are environments, once the tasks are named; without, runs end trained."""
        return True

    def rendering_problem(self) -> str:
        """Why no video can be made on this machine; empty if one can."""
        return rendering_problem()

    @abc.abstractmethod
    def collect(self, run: Run) -> None:
        """Fill in the run's data and trajectory prompts."""

    def imitates_expert(self, cfg: DictConfig) -> bool:
        """Whether actors imitate the data's ``expert_action``, not the executed one."""
        return False

    @abc.abstractmethod
    def prompts(self) -> Mapping[str, TextPrompt]:
        """The text prompts by task."""

    def embed(self, run: Run) -> torch.Tensor:
        """The texts' embeddings, a row a task, for a policy that reads texts."""
        encoder = make_text_encoder(text_encoder(run.cfg))
        run.text_encoder_identity = encoder.identity
        names, prompts = run.split.table.names, self.prompts()
        if run.cfg.network.text_mixture:
            run.wordings = wordings_table(names, encoder, prompts)
        return text_embedding_table(names, encoder, prompts)

    def network(self, run: Run) -> dict[str, Any]:
        """The entries of the network's configuration that follow from the data."""
        return {}

    def about(self) -> dict[str, Any]:
        """What a saved policy has to know of its environments besides the tasks' names, as JSON."""
        return {}

    @abc.abstractmethod
    def settings(self, cfg: DictConfig) -> EvaluationSettings:
        """How evaluations are made."""

    @abc.abstractmethod
    def suite(self, run: Run, settings: EvaluationSettings) -> Suite:
        """The environments of all tasks."""

    def starts(self, run: Run, settings: EvaluationSettings) -> dict[str, Any] | None:
        """The suite's ``starts()`` where the settings alone do not determine the episodes."""
        return None

    def identity(self, cfg: DictConfig) -> Any:
        """The family's own settings that a training depends on, as JSON has them."""
        return None


@dataclasses.dataclass
class Run:
    """State of one run, filled in stage by stage."""

    cfg: DictConfig
    family: Family
    output: Path  # folder of all artefacts
    split: TaskSplit
    device: torch.device  # of networks, training and the policy in evaluations
    dataset: Any = None  # transitions of the training tasks
    training_prompts: PromptTables = dataclasses.field(default_factory=PromptTables)
    evaluation_prompts: PromptTables = dataclasses.field(default_factory=PromptTables)
    recorded: TrajectoryPromptBank | None = None  # the data's, for evaluations on seen tasks
    text_encoder_identity: dict[str, Any] | None = None
    wordings: torch.Tensor | None = None  # [T, D], means of the embeddings of short texts
    support_hash: str | None = None  # of the demonstrations of held-out tasks
    fingerprint: str = ""  # hash of everything that the training depends on
    policy: Any = None
    trained: bool = False  # in this run
    failed: int = 0  # episodes that crashed
    objective: float = math.nan  # of the evaluation, for a sweep
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of each stage

    def cut_prompts(self) -> None:
        """Cut the trajectory prompts of the data, for training and evaluations.

        Training reads ``trajectory_prompt.copies`` of each: one as recorded, which evaluations
        read too, and others with less in them.
        """
        prompt, seed = self.cfg.trajectory_prompt, self.cfg.seed
        self.recorded, *others = (
            TrajectoryPromptBank.from_dataset(
                self.dataset,
                prompt.length,
                spacing=self._spacing(self.dataset),
                recorded=not number,
                change=functools.partial(_copy, seed=seed, number=number),
            )
            for number in range(prompt.copies)
        )
        self.evaluation_prompts = PromptTables(trajectories=self.recorded)
        both = [self.recorded, *others]
        bank = TrajectoryPromptBank.concatenate(both) if others else self.recorded
        self.training_prompts = PromptTables(trajectories=bank)

    def _spacing(self, dataset: Any) -> Spacing | None:
        """Where the steps of the prompts of a dataset lie."""
        fields = dataset.manifest.observation_layout["fields"]
        known = {"prompt": self.cfg.prompt, "observation_fields": fields}
        return NetworkConfig(**plain(self.cfg.network) | known).spacing

    def add_demonstrations(
        self,
        support: Any,
        demonstration: str = "as_recorded",
        number: int = 0,
        *,
        recovery: bool = False,
    ) -> None:
        """Let evaluations use also the prompts of held-out tasks, from another dataset.

        Args:
            support: the demonstrations.
            demonstration: what is left of each, see :func:`change_demonstration`.
            number: of each task's first, among its successful ones.
            recovery: whether they are there as recorded too, see :class:`RecoveryTransform`.
        """
        length = self.cfg.trajectory_prompt.length
        fields = support.manifest.observation_layout.get("fields", {})
        others = TrajectoryPromptBank.from_dataset(
            support,
            length,
            trained_on=False,
            spacing=self._spacing(support),
            recorded=recovery,
            change=lambda each, row: change_demonstration(each, demonstration, fields, seed=row),
        )
        assert self.recorded is not None
        both = TrajectoryPromptBank.concatenate([self.recorded, others.from_number(number)])
        self.evaluation_prompts = PromptTables(self.training_prompts.text, both)
        unusual = [demonstration] * (demonstration != "as_recorded") + [str(number)] * bool(number)
        unusual += ["recovery"] * recovery
        self.support_hash = "-".join([support.manifest.data_hash, *unusual])


def _copy(trajectory: Any, row: int, *, seed: int, number: int) -> Any:
    """The copy of this number of a training trajectory: the first is as recorded."""
    return vary_demonstration(trajectory, [seed, row, number]) if number else trajectory
