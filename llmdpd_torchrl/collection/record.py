"""Episodes of any Gymnasium environment, recorded while something acts in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdpd_torchrl.envs import GymnasiumEnv
from llmdpd_torchrl.utils.errors import ConfigError, DataError, first_line
from llmdpd_torchrl.utils.files import write_atomic

#: From an observation [O] to an action [A] in the environment's own units.
Act = Callable[[NDArray[np.float32]], Any]


def record_episodes(
    env: GymnasiumEnv,
    act: Act,
    episodes: int,
    *,
    noise: float = 0.0,
    steps_after_success: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, NDArray[Any]]:
    """Record episodes as arrays in D4RL's layout, with actions in the environment's own units.

    Args:
        env: to act in. Episode N starts as its number N.
        act: what acts.
        episodes: how many.
        noise: standard deviation of noise on the actions, as a part of half their range.
        steps_after_success: after which an episode ends, in an environment that has a rule for
            success and does not stop there: a demonstration that stays shows how to. 0: the
            environment decides.
        seed: of the noise.
        progress: whether to show a bar.

    Returns:
        ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``,
        ``next_observations`` and, where the environment has a rule for it, ``infos/success``.

    Raises:
        ConfigError: if an episode is to go on after a success and cannot.
        DataError: if ``act`` fails, or returns something else than an action.

    Examples:
        >>> env = GymnasiumEnv("Pendulum-v1", max_steps=5)
        >>> arrays = record_episodes(env, lambda observation: [0.0], 2, progress=False)
        >>> arrays["observations"].shape, arrays["timeouts"].sum()
        ((10, 3), np.int64(2))
    """
    generator = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {}
    half = (env.high - env.low) / 2
    if steps_after_success and (env.stop_on_success or not env.has_success):
        raise ConfigError(
            f"steps_after_success is {steps_after_success}: {env.task} needs a rule for success "
            "and stop_on_success=False"
        )
    bar = tqdm(range(episodes), desc=f"record {env.task}", unit="episode", disable=not progress)
    for number in bar:
        env.choose_episode(number)
        observation, left = env.begin(), steps_after_success
        done = False
        while not done:
            action = _call(act, observation, env)
            if noise:
                spread = noise * half * generator.normal(size=action.shape)
                action = action + spread.astype(np.float32)
            action = np.clip(action, env.low, env.high)
            step = env.advance(((action - env.low) / half - 1).astype(np.float32))
            done = step.terminated or step.truncated
            if steps_after_success and (step.success or left < steps_after_success):
                done, left = done or not left, left - 1
            row = {
                "observations": observation,
                "actions": action,
                "rewards": np.float32(step.reward),
                "terminals": step.terminated,
                "timeouts": done and not step.terminated,
                "next_observations": step.observation,
            }
            if env.has_success:
                row["infos/success"] = step.success
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            observation = step.observation
    return {key: np.stack(values) for key, values in rows.items()}


def _call(act: Act, observation: NDArray[np.float32], env: GymnasiumEnv) -> NDArray[np.float32]:
    try:
        action = np.asarray(act(observation.copy()), np.float32).reshape(-1)
    except Exception as error:  # of anybody's policy
        raise DataError(
            f"the policy fails on an observation [{len(observation)}]: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if action.shape != env.low.shape or not np.isfinite(action).all():
        raise DataError(
            f"the policy returned {action.tolist()}: {env.task} needs {len(env.low)} finite numbers"
        )
    return action


def write_episodes(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as ``.npz``, complete or not at all.

    Raises:
        ConfigError: if the path ends otherwise, or is there already.
    """
    if path.suffix != ".npz":
        raise ConfigError(f"{path}: name a file that ends in .npz")
    if path.exists():
        raise ConfigError(f"{path} is there already: name a new file")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomic(path, write)
