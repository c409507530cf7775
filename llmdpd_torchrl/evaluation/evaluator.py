"""Every episode of every task in worker processes, each counted exactly once."""

from __future__ import annotations

import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from llmdpd_torchrl.envs.multitask import SimulatorError, SimulatorPool
from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, GroupTiming, run_group
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.evaluation.suites import EpisodeSpec, MetaWorldSuite, Suite
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, PromptError
from llmdpd_torchrl.utils.processes import Backend, JobFailed, LocalBackend


class Evaluator:
    """Evaluates policies on the same episodes with the same workers, each time it is called.

    The result does not depend on the backend or the number of its workers. An episode whose
    simulator raises, whose action is not finite or whose worker dies is reported with its
    ``error``; episodes that the worker had not begun go on in another. What is no simulator's fault
    and fails before any episode has ended, a policy that raises for example, is raised.

    Args:
        tasks: seen or unseen Meta-World tasks, or those of ``suite``.
        settings: see :class:`EvaluationSettings`.
        suite: other environments than Meta-World's.
        backend: see :func:`~llmdpd_torchrl.utils.processes.make_backend`; default: processes.
        workers: processes of the default backend; default: one per available core.
        progress: whether to show a bar.

    Attributes:
        timings: of the last call's groups, see :class:`GroupTiming`.

    Raises:
        ConfigError: if a task is unknown or named twice, or has too few goals.

    Examples:
        >>> from llmdpd_torchrl.baselines import retrieve_and_play_policy
        >>> with Evaluator(["reach-v3"], EvaluationSettings(episodes_per_task=2)) as evaluator:
        ...     evaluator.suite.tasks
        ('reach-v3',)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        settings: EvaluationSettings | None = None,
        *,
        suite: Suite | None = None,
        backend: Backend | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.settings = settings or EvaluationSettings()
        self.suite: Suite = self.settings.suite(tasks) if suite is None else suite
        self.tasks = tuple(tasks)
        unknown = [task for task in self.tasks if task not in self.suite.tasks]
        if not self.tasks or unknown or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(
                f"tasks are {', '.join(self.tasks) or 'none'}: name each once, and some of "
                f"{', '.join(self.suite.tasks)}"
            )
        if isinstance(self.suite, MetaWorldSuite):
            goals = min(len(self.suite.goals[task]) for task in self.tasks)
            if goals < self.settings.episodes_per_task:
                raise ConfigError(
                    f"episodes_per_task is {self.settings.episodes_per_task}, but the suite has "
                    f"{goals} goals of a task: sample more"
                )
        self.backend: Backend = LocalBackend(workers) if backend is None else backend
        self.progress = progress
        # Workers reuse simulators as long as they work for the same evaluator.
        self._key = uuid.uuid4().hex
        self.timings: list[GroupTiming] = []

    def __call__(
        self, policy: LLMDPDPolicy, tables: PromptTables | None = None
    ) -> list[EpisodeResult]:
        """Run every episode of every task; none is dropped and none is run twice.

        Args:
            policy: to be evaluated.
            tables: prompts of the tasks, for a policy that reads them. Each task uses its first
                trajectory prompt in all episodes.

        Returns:
            one result an episode, by task and goal.

        Raises:
            ConfigError: if prompts that the policy needs are missing.
            PromptError: if a task has no trajectory prompt.
        """
        tables = PromptTables() if tables is None else tables
        policy.check_tables(tables)
        self._check_tables(policy, tables)
        self.timings = []
        options = {"tables": tables, "settings": self.settings}
        groups = dict(enumerate(self.settings.groups(self.tasks)))
        found: dict[EpisodeSpec, EpisodeResult] = {}
        total = len(self.tasks) * self.settings.episodes_per_task
        bar = tqdm(total=total, desc="evaluate", unit="episode", disable=not self.progress)
        with bar:
            while groups:
                groups = self._round(policy, groups, options, found, bar)
        order = {task: position for position, task in enumerate(self.tasks)}
        return sorted(found.values(), key=lambda e: (order[e.task], e.goal_index))

    def _round(
        self,
        policy: LLMDPDPolicy,
        groups: dict[int, list[EpisodeSpec]],
        options: dict[str, Any],
        found: dict[EpisodeSpec, EpisodeResult],
        bar: Any,
    ) -> dict[int, list[EpisodeSpec]]:
        """Run groups of episodes, and return the rest of those whose worker died."""
        left: dict[int, list[EpisodeSpec]] = {}
        numbers = list(groups)
        begun: dict[int, set[EpisodeSpec]] = {number: set() for number in numbers}
        started, steps = time.monotonic(), 0
        jobs = [
            (policy, self.suite, groups[number], number, self._key, options) for number in numbers
        ]
        for position, event in self.backend.run(_run_group, jobs):
            number = numbers[position]
            results: list[EpisodeResult] = []
            if isinstance(event, EpisodeSpec):
                begun[number].add(event)
            elif isinstance(event, EpisodeResult):
                results = [event]
            elif isinstance(event, GroupTiming):
                self.timings.append(event)
            else:
                assert isinstance(event, JobFailed), event
                is_fault = event.error is not None and not isinstance(event.error, SimulatorError)
                if is_fault and all(result.error is not None for result in found.values()):
                    event.reraise()
                # Episodes that had not begun go on; if none had begun, none would.
                lost = begun[number] or set(groups[number])
                lost = lost - found.keys()
                rest = [e for e in groups[number] if e not in found and e not in lost]
                if rest:
                    left[number] = rest
                results = [_lost(episode, event.reason) for episode in sorted(lost)]
            for result in results:
                found[EpisodeSpec(result.task, result.goal_index)] = result
                steps += result.length
            bar.set_postfix_str(f"{steps / (time.monotonic() - started):.0f} steps/s", False)
            bar.update(len(results))
        return left

    def _check_tables(self, policy: LLMDPDPolicy, tables: PromptTables) -> None:
        if tables.trajectories is None or not policy.config.uses_trajectory:
            return
        known = tables.task_ids
        missing = [task for task in self.tasks if self.suite.task_id(task) not in known]
        if missing:
            raise PromptError(
                f"there is no trajectory prompt for {', '.join(missing)}: collect a demonstration"
            )

    def close(self) -> None:
        """Stop the workers."""
        self.backend.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def evaluate(
    policy: LLMDPDPolicy,
    tasks: Sequence[str],
    tables: PromptTables | None = None,
    **options: Any,
) -> list[EpisodeResult]:
    """Evaluate once: an :class:`Evaluator` that is made, called and closed.

    Args:
        policy: to be evaluated.
        tasks: see :class:`Evaluator`.
        tables: see there.
        **options: of :class:`Evaluator`.
    """
    with Evaluator(tasks, **options) as evaluator:
        return evaluator(policy, tables)


def _run_group(
    policy: LLMDPDPolicy,
    suite: Suite,
    episodes: Sequence[EpisodeSpec],
    number: int,
    key: str,
    options: dict[str, Any],
) -> Any:
    """Job of a worker. An episode is the same in a new simulator and in a reused one."""
    torch.set_num_threads(1)
    if key not in _pools:
        _close_pools()
        _pools[key] = defaultdict(list)
    yield from run_group(policy, suite, episodes, number, pool=_pools[key], **options)


_pools: dict[str, SimulatorPool] = {}


def _close_pools() -> None:
    for pool in _pools.values():
        for env in itertools.chain.from_iterable(pool.values()):
            env.close()
    _pools.clear()


def _lost(episode: EpisodeSpec, reason: str) -> EpisodeResult:
    return EpisodeResult(episode.task, episode.start, False, False, 0.0, 0, error=reason)
