"""Rollouts of a policy in many episodes at once, with one policy call for all of them."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, TransformedEnv

from llmdpd_torchrl.envs import MultiTaskEnv, SimulatorEnv
from llmdpd_torchrl.envs.metaworld import EpisodeSteps
from llmdpd_torchrl.envs.multitask import SimulatorPool
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.evaluation.suites import EpisodeSpec, MetaWorldSuite, Suite
from llmdpd_torchrl.policies.acting import Acting
from llmdpd_torchrl.policies.policy import RECOVERY_KEYS, LLMDPDPolicy
from llmdpd_torchrl.policies.transforms import environment_transforms
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.settings import Flag, Seed, Size, checked_dataclass


@checked_dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation, which with the policy and its prompts determine the result.

    Args:
        episodes_per_task: number of goals of every task; each goal has one episode.
        max_steps: length of an episode without success.
        seed: of the goals, which differ from those of every collection.
        hide_goal: as in the training data.
        acting: how the policy's actions are chosen, ``"sampled"``, ``"ranked"`` by its critics, or
            ``"deterministic"``. ``None`` leaves it to the policy, see
            :class:`~llmdpd_torchrl.policies.LLMDPDPolicy`.
        stop_on_success: whether the first success ends an episode, so that success at any step is
            success at the last; if not, all episodes run to their time limit.
        num_envs: number of episodes that run at once in a process, with one policy call for all.
        group_size: maximum number of episodes, about, of one worker's job. Rounding depends on what
            is computed together: results depend on ``num_envs`` and ``group_size``, and not on the
            number of workers. Smaller groups use more cores, larger ones have less overhead.

    Raises:
        ConfigError: if a number is out of range.

    Examples:
        >>> settings = EvaluationSettings(episodes_per_task=2)
        >>> settings.generator(0).initial_seed() == settings.generator(0).initial_seed()
        True
    """

    episodes_per_task: Size = 10
    max_steps: EpisodeSteps = 500
    seed: Seed = 0
    hide_goal: Flag = False
    acting: Acting | None = None
    stop_on_success: Flag = True
    num_envs: Size = 64
    group_size: Size = 128

    def to_dict(self) -> dict[str, Any]:
        """The settings as ``results.json`` stores them, where ``num_envs`` is named ``lanes``."""
        settings = asdict(self)
        settings["lanes"] = settings.pop("num_envs")
        return settings

    def suite(self, tasks: Sequence[str]) -> MetaWorldSuite:
        """Meta-World ``tasks`` on these settings' goals."""
        return MetaWorldSuite.sampled(
            tasks,
            self.episodes_per_task,
            self.seed,
            hide_goal=self.hide_goal,
            max_steps=self.max_steps,
            stop_on_success=self.stop_on_success,
        )

    def groups(self, tasks: Sequence[str]) -> list[list[EpisodeSpec]]:
        """All episodes in groups of about one size, each with episodes of all tasks.

        There are at least two groups, for two cores.
        """
        episodes = [
            EpisodeSpec(task, start) for start in range(self.episodes_per_task) for task in tasks
        ]
        count = min(max(2, -(-len(episodes) // self.group_size)), len(episodes))
        ends = [len(episodes) * number // count for number in range(count + 1)]
        return [episodes[start:end] for start, end in itertools.pairwise(ends)]

    def act(
        self, policy: LLMDPDPolicy, states: TensorDictBase, generator: torch.Generator
    ) -> torch.Tensor:
        """The policy's actions [N, A] in ``states`` [N]."""
        read = states.select(*policy.in_keys, *RECOVERY_KEYS, strict=False)
        return policy(read, generator=generator, acting=self.acting)["action"]

    def generator(self, number: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Generator of the sampled actions in group ``number``, whichever worker runs it."""
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class GroupTiming(NamedTuple):
    """Seconds of a group's run: in total, inside the simulators, and in the policy."""

    total: float
    simulator: float
    policy: float


def make_policy_env(
    policy: LLMDPDPolicy, env: SimulatorEnv | MultiTaskEnv, tables: PromptTables
) -> TransformedEnv:
    """An environment that gives ``policy`` its prompts, encoded once per episode.

    Raises:
        ConfigError: if its observations or actions are not as wide as the policy's.
    """
    config = policy.config
    widths = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    if widths != (config.observation_dim, config.action_dim):
        raise ConfigError(
            f"the environment has {widths[0]} observation and {widths[1]} action entries, the "
            f"policy reads {config.observation_dim} and writes {config.action_dim}: use the tasks "
            "that it was trained for"
        )
    return TransformedEnv(env, Compose(*environment_transforms(policy, tables)))


def run_group(
    policy: LLMDPDPolicy,
    suite: Suite,
    episodes: Sequence[EpisodeSpec],
    number: int,
    *,
    tables: PromptTables,
    settings: EvaluationSettings,
    pool: SimulatorPool | None = None,
) -> Iterator[EpisodeSpec | EpisodeResult | GroupTiming]:
    """Run one group of episodes.

    Args:
        policy: acts.
        suite: makes the environments.
        episodes: of the group.
        number: of the group; seeds the sampled actions.
        tables: prompts of the tasks.
        settings: see :class:`EvaluationSettings`.
        pool: of the suite's simulators, see :class:`~llmdpd_torchrl.envs.MultiTaskEnv`.

    Yields:
        an episode when it begins, its result when it ends, and at last the timing of the group.
    """
    began = time.perf_counter()
    generator = settings.generator(number, policy.device)
    waiting = deque(episodes)
    current = [waiting.popleft() for _ in range(min(settings.num_envs, len(episodes)))]
    base_env = MultiTaskEnv(suite.make, [episode.task for episode in current], pool=pool)
    env = make_policy_env(policy, base_env, tables)
    try:
        for index, episode in enumerate(current):
            base_env.assign(index, *episode)
            yield episode
        tally = _Tally(len(current), env.action_spec.shape[-1])
        state = env.reset()
        running = torch.ones(len(current), dtype=torch.bool)
        acting = 0.0
        while running.any():
            actions = torch.zeros(env.action_spec.shape)
            started = time.perf_counter()
            with torch.no_grad():
                rows = state if running.all() else state[running]
                actions[running] = settings.act(policy, rows, generator)
            acting += time.perf_counter() - started
            step = env.step(state.set("action", actions).set("_step", running))["next"]
            tally.count(step, actions, running)
            state = step.exclude("reward")
            ended = (running & step["done"].squeeze(-1)).nonzero().squeeze(-1).tolist()
            for index in ended:
                yield tally.result(index, current[index], suite, base_env.errors[index])
                if not waiting:
                    running[index] = False
                    continue
                current[index] = waiting.popleft()
                base_env.assign(index, *current[index])
                yield current[index]
            begun = [index for index in ended if running[index]]
            if begun:
                mask = torch.zeros_like(running)
                mask[begun] = True
                tally.clear(mask)
                state = env.reset(state.set("_reset", mask.unsqueeze(-1)))
    finally:
        env.close()
    yield GroupTiming(time.perf_counter() - began, base_env.simulator_seconds, acting)


class _Tally:
    """Return, length and success of the running episodes so far, by sub-environment."""

    def __init__(self, size: int, action_dim: int) -> None:
        self.episode_return = torch.zeros(size, dtype=torch.float64)
        self.length = torch.zeros(size, dtype=torch.int64)
        self.success = torch.zeros(size, dtype=torch.bool)
        self.success_at_end = torch.zeros(size, dtype=torch.bool)
        self.change = torch.zeros(size, dtype=torch.float64)
        self.action = torch.zeros(size, action_dim)

    def count(self, step: TensorDictBase, actions: torch.Tensor, running: torch.Tensor) -> None:
        success = step.get("success", None)
        if success is not None:
            self.success_at_end = torch.where(running, success.squeeze(-1), self.success_at_end)
            self.success |= self.success_at_end
        self.episode_return += step["reward"].squeeze(-1) * running
        change = (actions - self.action).abs().mean(-1)
        self.change += torch.where(running & (self.length > 0), change, torch.zeros_like(change))
        self.length += running
        self.action = actions

    def clear(self, mask: torch.Tensor) -> None:
        for values in (self.episode_return, self.length, self.success, self.success_at_end,
                       self.change):  # fmt: skip
            values[mask] = 0

    def result(
        self, index: int, episode: EpisodeSpec, suite: Suite, error: str | None
    ) -> EpisodeResult:
        length = int(self.length[index])
        total = float(self.episode_return[index])
        return EpisodeResult(
            task=episode.task,
            goal_index=episode.start,
            success=error is None and bool(self.success[index]),
            success_at_end=error is None and bool(self.success_at_end[index]),
            episode_return=total,
            length=length,
            error=error,
            score=suite.score(episode.task, total),
            action_change=float(self.change[index]) / (length - 1) if length > 1 else None,
        )
