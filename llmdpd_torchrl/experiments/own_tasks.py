"""Somebody's own tasks, by their file: environments, and episodes that are compared with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.envs import GymnasiumEnv, import_modules
from llmdpd_torchrl.evaluation.suites import GymnasiumSuite
from llmdpd_torchrl.experiments.task_file import OwnTask, TaskFile, read_task_file, read_text
from llmdpd_torchrl.prompts import RetrievalSpec, TextPrompt
from llmdpd_torchrl.tasks import TaskSplit, TaskTable
from llmdpd_torchrl.utils.errors import ConfigError, UserError


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
        content = read_task_file(path)
        tasks = content.tasks | content.held_out
        prompts = {name: read_text(path, name, task.text) for name, task in tasks.items()}
        table = TaskTable(tuple(tasks))
        split = TaskSplit(path.stem, tuple(content.tasks), tuple(content.held_out), table)
        return cls(path, content, split, prompts)

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
