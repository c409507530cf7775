"""Evaluation episodes: every (task, goal) of a fixed list, once, in lockstep and in processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.envs.transforms import Compose

from llmdpd_torchrl.data.tasks import METAWORLD_TASKS
from llmdpd_torchrl.envs.metaworld import MetaWorldEnv
from llmdpd_torchrl.errors import ConfigError
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.modules.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank
from llmdpd_torchrl.transforms.pipeline import environment_transforms
from llmdpd_torchrl.workers import available_cores, count_episode, run_jobs

__all__ = ["EvaluationSettings", "evaluate", "make_policy_env", "run_episodes"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How a policy is evaluated.

    Args:
        episodes_per_task: every task gets so many goals, and each goal one episode.
        max_steps: length of an episode without success.
        seed: of the goals, which differ from those of every collection.
        hide_goal: as in the training data.
        stochastic: draw actions from the policy, as the method does (true), or take its
            deterministic one (false). ``None`` draws unless the state is hidden from the actor:
            who follows a demonstration does best without noise, who knows the task stalls now and
            then without it (both seen on training tasks).

    Raises:
        ConfigError: if a number is out of range.

    Examples:
        >>> settings = EvaluationSettings(episodes_per_task=2)
        >>> settings.generator(0).initial_seed() == settings.generator(0).initial_seed()
        True
    """

    episodes_per_task: int = 10
    max_steps: int = 500
    seed: int = 0
    hide_goal: bool = False
    stochastic: bool | None = None

    def __post_init__(self) -> None:
        if self.episodes_per_task < 1:
            raise ConfigError(f"episodes_per_task is {self.episodes_per_task}: must be >= 1")
        if not 1 <= self.max_steps <= 500:
            raise ConfigError(f"max_steps is {self.max_steps}: Meta-World allows 1 to 500")
        if self.stochastic not in (None, True, False) or type(self.stochastic) is int:
            raise ConfigError(f"stochastic is {self.stochastic!r}: use true, false or null")

    def act(
        self, policy: LLMDPDPolicy, states: TensorDictBase, generator: torch.Generator
    ) -> torch.Tensor:
        """The policy's actions [*, A] in ``states``."""

        def under(exploration: ExplorationType) -> torch.Tensor:
            with set_exploration_type(exploration):
                return policy.actor(states.copy(), generator=generator)["action"]

        gate = states.get(("prompt", "observation_gate"), None)
        if self.stochastic is not None or gate is None:
            draws = self.stochastic is not False
            return under(ExplorationType.RANDOM if draws else ExplorationType.DETERMINISTIC)
        is_shut = gate == 0
        if is_shut.all():
            return under(ExplorationType.DETERMINISTIC)
        drawn = under(ExplorationType.RANDOM)
        if not is_shut.any():
            return drawn
        return torch.where(is_shut, under(ExplorationType.DETERMINISTIC), drawn)

    def generator(self, goal: int) -> torch.Generator:
        """The source of the actions' noise on goal number ``goal``.

        Every goal has its own, so that the result does not depend on which worker runs it.
        """
        digest = hashlib.sha256(f"{self.seed} {goal}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def evaluate(
    policy: LLMDPDPolicy,
    tasks: Sequence[str],
    *,
    text_table: torch.Tensor | None = None,
    bank: TrajectoryPromptBank | None = None,
    settings: EvaluationSettings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run every episode of every task; none is dropped and none is run twice.

    Args:
        policy: to be evaluated.
        tasks: seen or unseen Meta-World tasks.
        text_table: ``[T, D]`` text embeddings by task id, for a policy that reads them.
        bank: trajectory prompts; each task is shown its first one, in all episodes.
        settings: see :class:`EvaluationSettings`.
        workers: processes; default: one per available core.
        progress: whether to show a bar.

    Returns:
        one result an episode, by task and goal.

    Raises:
        ConfigError: if a task is unknown or a table that the policy needs is missing.
        PromptError: if a task has no trajectory prompt.
    """
    settings = settings or EvaluationSettings()
    names = METAWORLD_TASKS.check(tasks)
    policy.check_tables(text_table, bank)  # a missing table is reported before work starts
    count = min(workers or available_cores(), settings.episodes_per_task)
    # Every worker gets a share of every task's goals, so that all are busy to the end.
    shares = [list(range(w, settings.episodes_per_task, count)) for w in range(count)]
    results = run_jobs(
        run_episodes,
        [(policy, names, share, text_table, bank, settings) for share in shares],
        workers=count,
        episodes=len(names) * settings.episodes_per_task,
        description="evaluate",
        progress=progress,
    )
    order = {name: position for position, name in enumerate(names)}
    episodes = [episode for share in results for episode in share]
    return sorted(episodes, key=lambda episode: (order[episode.task], episode.goal_index))


def make_policy_env(
    policy: LLMDPDPolicy,
    task: str,
    *,
    text_table: torch.Tensor | None,
    bank: TrajectoryPromptBank | None,
    settings: EvaluationSettings,
    render: tuple[int, int] | None = None,
) -> TransformedEnv:
    """A Meta-World environment that shows ``policy`` its prompts, encoded once per episode.

    The arguments are those of :func:`evaluate`; ``render`` is the size of pictures, if any are
    going to be taken.
    """
    env = MetaWorldEnv(
        task,
        num_goals=settings.episodes_per_task,
        seed=settings.seed,
        hide_goal=settings.hide_goal,
        max_steps=settings.max_steps,
        stop_on_success=True,
        render=render,
    )
    transforms = environment_transforms(policy, text_table=text_table, bank=bank)
    return TransformedEnv(env, Compose(*transforms))


def run_episodes(
    policy: LLMDPDPolicy,
    tasks: Sequence[str],
    goals: Sequence[int],
    text_table: torch.Tensor | None,
    bank: TrajectoryPromptBank | None,
    settings: EvaluationSettings,
) -> list[EpisodeResult]:
    """Run the goals numbered ``goals`` of all ``tasks``: one environment a task, in lockstep.

    The policy is called once for all environments that are still running.
    """
    torch.set_num_threads(1)
    envs = [
        make_policy_env(policy, task, text_table=text_table, bank=bank, settings=settings)
        for task in tasks
    ]
    results: list[EpisodeResult] = []
    with torch.no_grad():
        for goal in goals:
            results += _run_round(policy, tasks, envs, goal, settings)
    for env in envs:
        env.close()
    return results


def _run_round(
    policy: LLMDPDPolicy,
    tasks: Sequence[str],
    envs: Sequence[TransformedEnv],
    goal: int,
    settings: EvaluationSettings,
) -> list[EpisodeResult]:
    """One episode of each task, on its goal number ``goal``."""
    generator = settings.generator(goal)
    for env in envs:
        env.base_env.choose_goal(goal)
    current: dict[int, TensorDictBase] = {i: env.reset() for i, env in enumerate(envs)}
    returns = [0.0] * len(envs)
    lengths = [0] * len(envs)
    results = []
    while current:
        states = torch.stack([state.select(*policy.actor.in_keys) for state in current.values()])
        actions = settings.act(policy, states, generator)
        for action, index in zip(actions, list(current), strict=True):
            step = envs[index].step(current[index].set("action", action))["next"]
            returns[index] += float(step["reward"])
            lengths[index] += 1
            if not step["done"]:
                current[index] = step.exclude("reward")
                continue
            del current[index]
            # The first success ends an episode, so that success at any step is success at the last.
            success = bool(step["success"])
            results.append(
                EpisodeResult(tasks[index], goal, success, success, returns[index], lengths[index])
            )
            count_episode(lengths[index])
    return results
