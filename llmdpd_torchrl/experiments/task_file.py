"""The YAML file of somebody's own tasks: environments, data, texts and success."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, import_modules
from llmdpd_torchrl.evaluation.suites import GymnasiumSuite
from llmdpd_torchrl.prompts import RetrievalSpec, TextPrompt
from llmdpd_torchrl.tasks import TaskSplit, TaskTable
from llmdpd_torchrl.utils.errors import ConfigError, UserError, first_line
from llmdpd_torchrl.utils.settings import Many, Number, Positive, Size, Text, checked_dataclass

#: One source, or a list of them.
Sources = Annotated[
    list[Text],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    AfterValidator(tuple),
]
References = Annotated[list[Number], Field(min_length=2, max_length=2), AfterValidator(tuple)]
#: What a task takes from the file where it does not say it itself.
_SHARED = ("env", "options", "success", "references", "max_steps")


@checked_dataclass()
class OwnTask:
    """One task of the file.

    Args:
        data: its episodes: sources of :func:`~llmdpd_torchrl.data.load_episodes`. Those of a
            held-out task are demonstrations, and are never trained on.
        text: what is to be done, in a sentence, or in the parts of a
            :class:`~llmdpd_torchrl.prompts.TextPrompt`.
        env, options, success, references, max_steps: as in :class:`TaskFile`, for this task.
    """

    data: Sources
    text: Any = None
    env: Text | None = None
    options: dict[str, Any] | None = None
    success: SuccessRule | None = None
    references: References | None = None
    max_steps: Size | None = None


@checked_dataclass()
class TaskFile:
    """The contents of the file.

    Args:
        tasks: those that are trained on, by name.
        held_out: those that the policy is only prompted with.
        family: ``gymnasium``.
        imports: ``import`` in the file: modules that register environments.
        env: id of the tasks' environment; without one, a policy is trained and not evaluated.
        options: further arguments of ``gymnasium.make``.
        success: when a task is solved, see :class:`~llmdpd_torchrl.envs.SuccessRule`.
        references: the returns that score 0 and 100, for tasks without success.
        max_steps: time limit of the environment, and of data that do not say where episodes end.
        keys: names of the arrays in the data, by those of D4RL's layout.
        action_range: lowest and highest value of the data's actions; default: the environment's.
        observation_fields: half-open index ranges of the observation by name.
        retrieval: what is looked up in a demonstration, see
            :class:`~llmdpd_torchrl.prompts.RetrievalSpec`; default: the state that is nearest.
        most_units: how many times larger the data's observations may be than the environment's, or
            the reverse, before it is taken for a mistake in the units.
    """

    tasks: Annotated[dict[str, OwnTask], Field(min_length=1)]
    held_out: dict[str, OwnTask] = field(default_factory=dict)
    family: Literal["gymnasium"] = "gymnasium"
    imports: Many[Text] = ()
    env: Text | None = None
    options: dict[str, Any] | None = None
    success: SuccessRule | None = None
    references: References | None = None
    max_steps: Size | None = None
    keys: dict[str, Text] = field(default_factory=dict)
    action_range: Any = None
    observation_fields: dict[str, Many[int]] | None = None
    retrieval: RetrievalSpec | None = None
    most_units: Positive = 100.0


@dataclass(frozen=True)
class OwnTasks:
    """Somebody's own tasks, read from a file.

    Attributes:
        path: of the file; paths of data are beside it.
        content: what it says.
        split: the tasks' names.
        prompts: their texts; a task without one has its name.
    """

    path: Path
    content: TaskFile
    split: TaskSplit
    prompts: Mapping[str, TextPrompt]

    @classmethod
    def read(cls, path: str | Path) -> OwnTasks:
        """Read and check a file; the data are not opened yet.

        Raises:
            ConfigError: with a line for every mistake, each naming the file and the key.
        """
        path = Path(path)
        values = _read_yaml(path)
        values = {"imports" if key == "import" else key: v for key, v in values.items()}
        try:
            content = TaskFile(**values)
        except ConfigError as error:
            lines = re.sub(r"\bimports\b", "import", str(error)).splitlines()
            raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
        tasks = content.tasks | content.held_out
        both = [name for name in content.tasks if name in content.held_out]
        if both:
            raise ConfigError(
                f"{path}: {both[0]!r} is among tasks and held_out: a task is trained on or held out"
            )
        for task in tasks.values():
            for key in _SHARED:
                if getattr(task, key) is None:
                    setattr(task, key, getattr(content, key))
        prompts = {name: _prompt(path, name, task.text) for name, task in tasks.items()}
        split = TaskSplit(
            path.stem, tuple(content.tasks), tuple(content.held_out), TaskTable(tuple(tasks))
        )
        found = cls(path, content, split, prompts)
        found._check_environments()
        return found

    @property
    def tasks(self) -> Mapping[str, OwnTask]:
        """All tasks, those that are trained on first."""
        return self.content.tasks | self.content.held_out

    @property
    def evaluates(self) -> bool:
        """Whether there are environments."""
        return any(task.env is not None for task in self.tasks.values())

    def check_texts(self) -> None:
        """Check that each task has a text, for a policy that reads texts.

        Raises:
            ConfigError: naming the tasks that have none.
        """
        without = [name for name, task in self.tasks.items() if task.text is None]
        if without:
            raise ConfigError(
                f"{self.path}: there is no text for {', '.join(without)}: give each task one, or "
                "train with prompt=trajectory"
            )

    def retrieval(self, fields: tuple[str, ...]) -> RetrievalSpec:
        """What is looked up in a demonstration: as the file says, or the nearest state."""
        return self.content.retrieval or RetrievalSpec.of_state(fields)

    def suite(
        self,
        seed: int = 0,
        *,
        max_steps: int | None = None,
        stop_on_success: bool = True,
        ids: Mapping[str, int] | None = None,
    ) -> GymnasiumSuite:
        """The environments.

        Args:
            seed: of the initial states.
            max_steps: a time limit in the place of the file's.
            stop_on_success: whether the first success ends an episode.
            ids: of the tasks; default: their places in the file.

        Raises:
            ConfigError: if there are none.
        """
        if not self.evaluates:
            raise ConfigError(f"{self.path}: no task has an env: there is nothing to evaluate in")
        ids = ids or {name: place for place, name in enumerate(self.tasks)}
        variants = {
            name: {
                "task": task.env,
                "options": task.options or {},
                "success": task.success,
                "max_steps": max_steps or task.max_steps,
                "task_id": ids[name],
            }
            for name, task in self.tasks.items()
        }
        references = {
            name: (task.references[0], task.references[1])
            for name, task in self.tasks.items()
            if task.references is not None and task.success is None
        }
        imports = tuple(self.content.imports)
        return GymnasiumSuite(
            variants, references, imports, seed=seed, stop_on_success=stop_on_success
        )

    def rendering_problem(self) -> str:
        """Why no video can be made; empty if one can."""
        for name, task in self.tasks.items():
            import_modules(self.content.imports)
            spec = gymnasium.spec(str(task.env))
            creator = spec.entry_point
            kind = (
                gymnasium.envs.registration.load_env_creator(creator)
                if isinstance(creator, str)
                else creator
            )
            modes = getattr(kind, "metadata", {}).get("render_modes", [])
            if "rgb_array" not in modes:
                return f"no videos: {task.env} of {name} has no render mode rgb_array"
        return ""

    def load(self, *, top_fraction: float = 1.0, progress: bool = True) -> OfflineDataset:
        """All episodes, those of held-out tasks last, with the successful ones marked.

        Args:
            top_fraction: of each task's episodes, by return, that count as successful where neither
                the file nor the data say what success is.
            progress: whether reading shows a bar.

        Raises:
            ConfigError: if a task's environment is not what its data were recorded in.
            DataError: if a source is missing, damaged, or unlike the others.
        """
        env = self._first_environment()
        sources = {name: [self._place(s) for s in task.data] for name, task in self.tasks.items()}
        dataset = self._read_episodes(sources, env, progress)
        return dataset.with_success(self._successful(dataset, top_fraction))

    def load_demonstrations(self, source: str, *, progress: bool = True) -> OfflineDataset:
        """The episodes of another source than the file's, as this reads its own.

        Raises:
            ConfigError: if they are not of the first task's environment.
            DataError: if it is missing or damaged.
        """
        return self._read_episodes(source, self._first_environment(), progress)

    def _read_episodes(
        self, sources: Any, env: GymnasiumEnv | None, progress: bool
    ) -> OfflineDataset:
        """Episodes in the file's layout, compared with the environment, which is closed."""
        content = self.content
        action_range = content.action_range
        if action_range is None and env is not None:
            action_range = env.low.tolist(), env.high.tolist()
        dataset = load_episodes(
            sources,
            max_episode_steps=content.max_steps,
            action_range=action_range,
            keys=content.keys or None,
            progress=progress,
        )
        fields = content.observation_fields or (env.fields if env is not None else None)
        if fields is not None:
            dataset = dataset.with_fields(fields, str(self.path))
        if env is not None:
            self._compare(env, dataset)
            env.close()
        return dataset

    def _place(self, source: str) -> str:
        """A source; a path that is relative to the file's folder, as one from here."""
        beside = self.path.parent / source.partition("::")[0]
        is_path = beside.exists() or source.endswith((".npz", ".hdf5", ".h5"))
        return str(self.path.parent / source) if is_path else source

    def _check_environments(self) -> None:
        if not self.evaluates:
            return
        for name, task in self.tasks.items():
            if task.env is None:
                raise ConfigError(f"{self.path}: tasks.{name} has no env, and others do: give all")
            if task.success is None and task.references is None:
                raise ConfigError(
                    f"{self.path}: {name} has neither success nor references: say when it is "
                    "solved (success: {info: is_success}), or which returns score 0 and 100"
                )

    def _first_environment(self) -> GymnasiumEnv | None:
        if not self.evaluates:
            return None
        try:
            import_modules(self.content.imports)
            suite = self.suite()
            return suite.make(suite.tasks[0])
        except UserError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def _compare(self, env: GymnasiumEnv, dataset: OfflineDataset) -> None:
        """Refuse data of another environment than the first task's, or in other units."""
        theirs = dataset.manifest.observation_layout["size"], dataset.manifest.action_size
        ours = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
        for kind, wide, found in zip(("observation", "action"), ours, theirs, strict=True):
            if wide != found:
                raise ConfigError(
                    f"{self.path}: the data's {kind}s have {found} entries, those of {env.task} "
                    f"{wide}: they are not of this environment"
                )
        env.set_seed(0)
        seen = env.rollout(50)["observation"].abs().amax()
        recorded = dataset.transitions["observation"].abs().amax()
        ratio = float(recorded.clamp_min(1e-9) / seen.clamp_min(1e-9))
        if not 1 / self.content.most_units <= ratio <= self.content.most_units:
            raise ConfigError(
                f"{self.path}: the data's observations reach {recorded:.3g}, those of {env.task} "
                f"{seen:.3g} in random steps: look at their units (most_units: N allows it)"
            )

    def _successful(self, dataset: OfflineDataset, top_fraction: float) -> Any:
        """``[E]`` bool: the episodes that are successful, or the best ones."""
        found = dataset.best(top_fraction)
        knows = ("next", "success") in dataset.transitions.keys(include_nested=True)
        if knows:
            found = dataset.trajectory_success
        for name, task in self.tasks.items():
            rule, number = task.success, self.split.table.index(name)
            rows = dataset.trajectory_task == number
            if rule is None or (rule.info is not None and knows):
                continue
            if rule.info is not None:
                raise ConfigError(
                    f"{self.path}: success of {name} is an entry of the environment's info, and "
                    "the data have no column infos/success: add it, or give min_reward or "
                    "min_return"
                )
            met = dataset.meets(min_reward=rule.min_reward, min_return=rule.min_return)
            found[rows] = met[rows]
        return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice, first on line {seen[key]}",
                    key_node.start_mark,
                )  # fmt: skip
            seen[str(key)] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the task file {path}: {error}") from error
    if "*" in text and "&" in text and any(isinstance(e, yaml.AliasEvent) for e in _events(text)):
        raise ConfigError(f"{path}: aliases (*name) are not read: write the values out")
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes no objects
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: is no mapping with the key tasks")
    return values


def _events(text: str) -> Any:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # said where it is read


def _prompt(path: Path, name: str, text: Any) -> TextPrompt:
    """A task's text: a sentence, or its parts; without one, its name."""
    if text is None:
        return TextPrompt(name, task=name)
    parts = {"task": text} if isinstance(text, str) else text
    known = [key for key in TextPrompt.__dataclass_fields__ if key != "name"]
    if not isinstance(parts, dict) or "task" not in parts or set(parts) - set(known):
        raise ConfigError(
            f"{path}: text of {name} is {text!r}: give a sentence, or task and some of "
            f"{', '.join(known[1:])}"
        )
    for key, value in parts.items():
        lines = value if key == "paraphrases" and isinstance(value, list) else [value]
        if not all(isinstance(line, str) and line.strip() for line in lines):
            raise ConfigError(f"{path}: text of {name}: {key} is {value!r}: give words")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parts.items()}
    return TextPrompt(name, **given)
