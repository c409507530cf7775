"""Suites: families of environments, their fixed episodes, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.envs import (
    GymMujocoEnv,
    GymnasiumEnv,
    HalfCheetahVelocityEnv,
    MetaWorldEnv,
    SimulatorEnv,
    import_modules,
    sample_goals,
)
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, reference_returns
from llmdpd_torchrl.utils.errors import ConfigError


class EpisodeSpec(NamedTuple):
    """One episode: a task, and the number of one of its fixed starts."""

    task: str
    start: int


class Suite(Protocol):
    """Interface of a family of environments to the evaluation. It is sent to worker processes.

    Any environment of TorchRL can be evaluated by a suite that makes a
    :class:`~llmdpd_torchrl.envs.SimulatorEnv` of it.

    Examples:
        >>> suite: Suite = GymMujocoSuite()
        >>> suite.tasks
        ('hopper',)
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are evaluated."""

    def make(self, task: str, *, render: tuple[int, int] | None = None) -> SimulatorEnv:
        """An environment of one task, whose numbered episodes are always the same."""

    def task_id(self, task: str) -> int:
        """Value of ``task_id`` in the environment of a task."""

    def score(self, task: str, episode_return: float) -> float | None:
        """The normalised score of a return, 0 to 100, where there is one."""

    def starts(self) -> dict[str, Any]:
        """How each task's episodes start, as JSON: stored with the results."""


@dataclass(frozen=True)
class MetaWorldSuite:
    """Meta-World tasks on fixed placements of object and goal; see :meth:`sampled`.

    Attributes:
        goals: by task, one placement an episode.
        hide_goal: as in the training data.
        max_steps: length of an episode without success.
        stop_on_success: whether the first success ends an episode.

    Examples:
        >>> MetaWorldSuite.sampled(["reach-v3", "push-v3"], episodes=1, max_steps=100).tasks
        ('reach-v3', 'push-v3')
    """

    goals: Mapping[str, tuple[NDArray[np.float64], ...]]
    hide_goal: bool = False
    max_steps: int = 500
    stop_on_success: bool = True

    @classmethod
    def sampled(
        cls, tasks: Sequence[str], episodes: int, seed: int = 0, **options: Any
    ) -> MetaWorldSuite:
        """Placements of ``seed``, which differ from those of every collection.

        Raises:
            ConfigError: if a task is unknown, or Meta-World is not installed.

        Examples:
            >>> suite = MetaWorldSuite.sampled(["reach-v3"], episodes=2)
            >>> len(suite.starts()["reach-v3"])
            2
        """
        names = METAWORLD_TASKS.check(tasks)
        return cls({task: sample_goals(task, episodes, seed) for task in names}, **options)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are evaluated."""
        return tuple(self.goals)

    def make(self, task: str, *, render: tuple[int, int] | None = None) -> MetaWorldEnv:
        """An environment of one task."""
        return MetaWorldEnv(
            task,
            goals=self.goals[task],
            hide_goal=self.hide_goal,
            max_steps=self.max_steps,
            stop_on_success=self.stop_on_success,
            render=render,
        )

    def task_id(self, task: str) -> int:
        """Index in Meta-World's table."""
        return METAWORLD_TASKS.index(task)

    def score(self, task: str, episode_return: float) -> float | None:
        """Meta-World has none."""
        return None

    def starts(self) -> dict[str, Any]:
        """The placements."""
        return {task: [goal.tolist() for goal in goals] for task, goals in self.goals.items()}


@dataclass(frozen=True)
class GymMujocoSuite:
    """Gymnasium's locomotion tasks and running at target velocities, by normalised score.

    Attributes:
        variants: by name, the options of a :class:`~llmdpd_torchrl.envs.GymMujocoEnv`: its
            ``task``, and ``dynamics``, ``task_id`` or ``max_steps``, say; with a
            ``target_velocity`` in the place of ``task``, those of a
            :class:`~llmdpd_torchrl.envs.HalfCheetahVelocityEnv`.
        references: by name, the returns that score 0 and 100; default: D4RL's for the task.
        seed: of the initial states.
        max_steps: time limit of the variants that name none.

    Raises:
        ConfigError: if a variant names no task, or there are no reference returns for it.

    Examples:
        >>> suite = GymMujocoSuite({"hopper": {"task": "Hopper-v4"}})
        >>> suite.score("hopper", 3234.3)
        100.0
        >>> jog = {"target_velocity": 1.0, "max_steps": 200}
        >>> GymMujocoSuite({"jog": jog}, references={"jog": (-200.0, -50.0)}).score("jog", -125.0)
        50.0
    """

    variants: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"hopper": {"task": "Hopper-v4"}}
    )
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seed: int = 0
    max_steps: int = 1000

    def __post_init__(self) -> None:
        for name, options in self.variants.items():
            if ("task" in options) == ("target_velocity" in options):
                raise ConfigError(
                    f"variant {name!r} must name a task or a target_velocity: say task=Hopper-v4, "
                    "for example"
                )
            low, high = self._reference(name)
            if not low < high:
                raise ConfigError(
                    f"variant {name!r}: the return that scores 0 is {low}, the one that scores 100 "
                    f"{high}: it must be larger"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the variants."""
        return tuple(self.variants)

    def make(self, task: str, *, render: tuple[int, int] | None = None) -> GymMujocoEnv:
        """An environment of one variant."""
        options = {"max_steps": self.max_steps, "seed": self.seed, **self.variants[task]}
        kind = HalfCheetahVelocityEnv if "target_velocity" in options else GymMujocoEnv
        return kind(**options, render=render)

    def task_id(self, task: str) -> int:
        """That of the variant's options, or 0."""
        return self.variants[task].get("task_id", 0)

    def score(self, task: str, episode_return: float) -> float | None:
        """0 and 100 at the reference returns."""
        low, high = self._reference(task)
        return 100.0 * (episode_return - low) / (high - low)

    def _reference(self, name: str) -> tuple[float, float]:
        if name in self.references:
            return self.references[name]
        if "task" not in self.variants[name]:
            raise ConfigError(f"variant {name!r} has no reference returns: give them")
        return reference_returns(self.variants[name]["task"])

    def starts(self) -> dict[str, Any]:
        """The seed, which determines initial states by an episode's number, and the options."""
        return {
            task: {"seed": self.seed, "max_steps": self.max_steps, **_as_json(options)}
            for task, options in self.variants.items()
        }


@dataclass(frozen=True)
class GymnasiumSuite:
    """Environments of Gymnasium's registry, by success, or by normalised score.

    Attributes:
        variants: by task, the options of a :class:`~llmdpd_torchrl.envs.GymnasiumEnv`: its
            ``task``, and ``success``, ``options``, ``task_id`` or ``max_steps``, say.
        references: by task, the returns that score 0 and 100; the results of tasks with them are
            scores, those of others success.
        imports: modules that register the environments, for workers.
        seed: of the initial states.
        stop_on_success: whether the first success ends an episode.

    Raises:
        ConfigError: if a task has neither ``success`` nor references, or they are no range.

    Examples:
        >>> suite = GymnasiumSuite({"up": {"task": "Pendulum-v1"}}, {"up": (-1500.0, -100.0)})
        >>> suite.score("up", -800.0)
        50.0
    """

    variants: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    imports: Sequence[str] = ()
    seed: int = 0
    stop_on_success: bool = True

    def __post_init__(self) -> None:
        for name, options in self.variants.items():
            if options.get("success") is None and name not in self.references:
                raise ConfigError(
                    f"task {name!r} has neither success nor references: give a rule for success, "
                    "or the returns that score 0 and 100"
                )
        for name, (low, high) in self.references.items():
            if not low < high:
                raise ConfigError(
                    f"references of task {name!r} are {low} and {high}: the return that scores 100 "
                    "must be larger"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are evaluated."""
        return tuple(self.variants)

    def make(self, task: str, *, render: tuple[int, int] | None = None) -> GymnasiumEnv:
        """An environment of one task."""
        import_modules(self.imports)
        stops = self.stop_on_success
        return GymnasiumEnv(
            seed=self.seed, stop_on_success=stops, render=render, **self.variants[task]
        )

    def task_id(self, task: str) -> int:
        """That of the task's options, or 0."""
        return self.variants[task].get("task_id", 0)

    def score(self, task: str, episode_return: float) -> float | None:
        """0 and 100 at the references; ``None`` where success is what counts."""
        if task not in self.references:
            return None
        low, high = self.references[task]
        return 100.0 * (episode_return - low) / (high - low)

    def starts(self) -> dict[str, Any]:
        """The seed, which determines initial states by an episode's number, and the options."""
        return {
            task: {"seed": self.seed, **_as_json(options)}
            for task, options in self.variants.items()
        }


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with rules and physics as mappings, and classes by their names."""
    return {
        key: getattr(value, "__name__", None)
        or (asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)
        for key, value in options.items()
    }
