"""What an environment must be for policies of this package to be trained and evaluated on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.utils.errors import first_line


class Finding(NamedTuple):
    """One thing that was looked at, in one line, and whether it is a fault."""

    name: str
    text: str
    is_fault: bool = False


def check_environment(
    env: EnvBase, *, time_limit: int | None = None, steps: int = 1000, seed: int = 0
) -> Iterator[Finding]:
    """Look at an environment, and play random episodes in it.

    Args:
        env: without batch dimension.
        time_limit: steps after which it is said to truncate.
        steps: longest episode that is played.
        seed: of the episodes.
    """
    yield _specs(env, seed)
    yield _observation(env)
    yield _action(env)
    try:
        first, again = (_play(env, min(steps, 50), seed) for _ in range(2))
        episode = _play(env, steps, seed)
    except Exception as error:  # environments raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        yield Finding("episodes", f"random actions make it raise {reason}", is_fault=True)
        return
    yield _determinism(first, again)
    yield _finite(episode)
    yield _end(episode, time_limit, steps)


def _play(env: EnvBase, steps: int, seed: int) -> TensorDictBase:
    """A random episode that depends on the seed alone, if the environment does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        env.set_seed(seed)
        return env.rollout(steps)


def _specs(env: EnvBase, seed: int) -> Finding:
    try:
        with torch.random.fork_rng(devices=[]):
            check_env_specs(env, seed=seed)
    except Exception as error:
        return Finding("specs", f"what it returns is not what it declares: {_line(error)}", True)
    return Finding("specs", "it returns what it declares")


def _observation(env: EnvBase) -> Finding:
    spec = env.observation_spec.get("observation", None)
    if spec is None:
        keys = ", ".join(map(str, env.observation_spec.keys(True, True)))
        return Finding("observation", f"there is no entry 'observation', but {keys}", True)
    text = f"{list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}"
    if len(spec.shape) != 1 or not spec.dtype.is_floating_point:
        return Finding("observation", f"{text}: policies read a vector of real numbers", True)
    return Finding("observation", text)


def _action(env: EnvBase) -> Finding:
    spec = env.action_spec
    text = f"{list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}"
    if len(spec.shape) != 1 or not spec.dtype.is_floating_point:
        return Finding("action", f"{text}: policies write a vector of real numbers", True)
    if not isinstance(spec, Bounded):
        return Finding("action", f"{text} without bounds: policies act in [-1, 1]", True)
    low, high = float(spec.space.low.min()), float(spec.space.high.max())
    text += f" in [{low:g}, {high:g}]"
    if not (spec.space.low == -1).all() or not (spec.space.high == 1).all():
        remedy = "wrap it in gymnasium.wrappers.RescaleAction(env, -1, 1)"
        return Finding("action", f"{text}: policies act in [-1, 1], {remedy}", True)
    return Finding("action", text)


def _determinism(first: TensorDictBase, again: TensorDictBase) -> Finding:
    keys = [key for key in first.keys(True, True) if key in again.keys(True, True)]
    same = first.shape == again.shape and all(torch.equal(first[k], again[k]) for k in keys)
    if not same:
        text = "two episodes of one seed and the same actions differ: evaluations cannot be paired"
        return Finding("determinism", text, is_fault=True)
    return Finding("determinism", f"two episodes of one seed are equal ({len(first)} steps)")


def _finite(episode: TensorDictBase) -> Finding:
    reward = episode["next", "reward"]
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        value = episode.get(key, None)
        if value is not None and not value.isfinite().all():
            return Finding("reward", f"{key} has values that are not finite", is_fault=True)
    low, high = float(reward.min()), float(reward.max())
    return Finding("reward", f"finite, {low:.3g} to {high:.3g} with random actions")


def _end(episode: TensorDictBase, time_limit: int | None, steps: int) -> Finding:
    last, length = episode[-1]["next"], len(episode)
    terminated, truncated = (bool(last[key].any()) for key in ("terminated", "truncated"))
    if not (terminated or truncated):
        limit = "it has no time limit" if time_limit is None else f"its limit is {time_limit}"
        is_fault = time_limit is None or length >= time_limit
        return Finding("end", f"no end within {steps} steps; {limit}", is_fault)
    if terminated and length == time_limit:
        text = f"the time limit of {length} steps terminates: it must truncate, or values are wrong"
        return Finding("end", text, is_fault=True)
    how = "terminated" if terminated else "truncated"
    limit = "no time limit" if time_limit is None else f"time limit {time_limit}"
    return Finding("end", f"{how} after {length} steps with random actions ({limit})")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
