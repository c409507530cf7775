"""Collect a small dataset of running at target speeds, in D4RL's layout.

The behaviour is a sine gait of the half cheetah with a speed-dependent amplitude. It was found by
an evolution strategy on the mean speed of short episodes and reaches about 3 m/s, where trained
policies reach 10. Scores on it measure how well a speed is held, not how well a policy runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llmdpd_torchrl.envs.gym_mujoco import HalfCheetahVelocityEnv
from llmdpd_torchrl.utils.cache import locked_folder
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_atomic

GAIT_SPEEDS = tuple(0.25 * step for step in range(1, 13))
"""Target speeds in m/s, all within the reach of the gait."""

GAIT_HELD_OUT = (0.75, 1.5, 2.25)
"""Held-out target speeds."""

_STEP_SECONDS = 0.05
_FREQUENCY = 1.0 + 2.5 / (1.0 + np.exp(-1.66))
_OFFSET = np.array([0.668, -0.232, -0.363, -0.053, -2.611, -2.359])
_AMPLITUDE = np.array([0.551, 3.344, -2.012, 1.121, -0.232, -0.74])
_PHASE = np.array([-0.171, 2.819, -2.303, 2.832, -1.093, -1.026])
_GAIN = 0.04  # change of the amplitude, per step and m/s
_SPEED = 8  # index of the torso's forward velocity in the observation


def collect_gait(
    path: str | os.PathLike[str],
    *,
    episodes: int = 8,
    steps: int = 200,
    noise: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the dataset, unless the file exists.

    Args:
        path: of the file; its folder is created.
        episodes: number for each of :data:`GAIT_SPEEDS`; every fourth has action noise.
        steps: length of an episode, the time limit of all.
        noise: standard deviation of the action noise.
        seed: of initial states and noise.
        progress: whether to display a progress bar.

    Returns:
        ``path``. Besides D4RL's arrays the file has ``infos/task_id`` and ``infos/behavior_id`` (1:
        with noise), and the attributes ``env_id``, ``horizon``, ``reward`` and ``tasks``: JSON, for
        each task its ``target_velocity``, ``split`` (``"train"`` or ``"test"``), and the returns
        that score 100 (``ref_max``, the mean without noise) and 0 (``ref_min``, random actions).

    Raises:
        ConfigError: if a number is out of range or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> from llmdpd_torchrl.data import load_episodes
        >>> path = Path(tempfile.mkdtemp()) / "gait.hdf5"
        >>> _ = collect_gait(path, episodes=1, steps=2, progress=False)
        >>> load_episodes(path, task_key="task_id").transitions.shape
        torch.Size([24])
    """
    path = Path(path)
    for name, value, least in (("episodes", episodes, 1), ("steps", steps, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}: it must be at least {least}")
    if path.exists():  # perhaps in a folder that is only readable
        return path
    with locked_folder(path.parent, "data", "data.folder"):
        if not path.exists():  # another process may have made it in the meantime
            columns, tasks = _collect(episodes, steps, noise, seed, progress)
            write_atomic(path, lambda temporary: _write(temporary, columns, tasks, steps))
    return path


def _collect(
    episodes: int, steps: int, noise: float, seed: int, progress: bool
) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    rows: list[dict[str, NDArray[Any]]] = []
    tasks: list[dict[str, Any]] = []
    total = len(GAIT_SPEEDS) * (episodes + 1)
    with tqdm(total=total, desc="collect gait", unit="episode", disable=not progress) as bar:
        for task_id, speed in enumerate(GAIT_SPEEDS):
            env = HalfCheetahVelocityEnv(speed, seed=seed, max_steps=steps)
            env.choose_episode(task_id * (episodes + 1))
            returns = {"random": _episode(env, speed, None, seed)["rewards"].sum()}
            bar.update()
            clean = []
            for episode in range(episodes):
                is_noisy = episode % 4 == 3
                env.choose_episode(task_id * (episodes + 1) + 1 + episode)
                columns = _episode(env, speed, noise if is_noisy else 0.0, seed + episode)
                columns["infos/task_id"] = np.full(steps, task_id, dtype=np.int16)
                columns["infos/behavior_id"] = np.full(steps, is_noisy, dtype=np.int8)
                rows.append(columns)
                if not is_noisy:
                    clean.append(columns["rewards"].sum())
                bar.update()
            env.close()
            tasks.append(
                {
                    "id": task_id,
                    "target_velocity": speed,
                    "split": "test" if speed in GAIT_HELD_OUT else "train",
                    "ref_max": float(np.mean(clean)),
                    "ref_min": float(returns["random"]),
                }
            )
    return {key: np.concatenate([columns[key] for columns in rows]) for key in rows[0]}, tasks


def _episode(
    env: HalfCheetahVelocityEnv, speed: float, noise: float | None, seed: int
) -> dict[str, NDArray[Any]]:
    """One episode of the gait, or of uniform actions for ``noise=None``."""
    generator = np.random.default_rng((seed, round(100 * speed)))
    observation = env.begin()
    amplitude = speed / 3.0
    rows: list[tuple[Any, ...]] = []
    while not rows or not rows[-1][-1]:
        if noise is None:
            command = generator.uniform(-1.0, 1.0, 6)
        else:
            amplitude += _GAIN * (speed - float(observation[_SPEED]))
            amplitude = min(max(amplitude, 0.0), 1.0)
            phase = 2.0 * np.pi * _FREQUENCY * _STEP_SECONDS * len(rows) + _PHASE
            command = _OFFSET + amplitude * _AMPLITUDE * np.sin(phase)
            command = command + noise * generator.normal(size=6)
        action = command.clip(-1.0, 1.0).astype(np.float32)
        step = env.advance(action)
        rows.append((observation, action, step.observation, step.reward, step.truncated))
        observation = step.observation
    observations, actions, following, rewards, timeouts = zip(*rows, strict=True)
    return {
        "observations": np.stack(observations),
        "actions": np.stack(actions),
        "next_observations": np.stack(following),
        "rewards": np.array(rewards, dtype=np.float32),
        "terminals": np.zeros(len(rows), dtype=np.bool_),  # the half cheetah cannot fall
        "timeouts": np.array(timeouts, dtype=np.bool_),
    }


def _write(
    path: Path, columns: dict[str, NDArray[Any]], tasks: Sequence[dict[str, Any]], steps: int
) -> None:
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file.create_dataset(key, data=column, compression="gzip", shuffle=True)
        file.attrs["env_id"] = "HalfCheetah-v4"
        file.attrs["horizon"] = steps
        file.attrs["reward"] = "-|x_velocity - target| - 0.05*sum(action^2)"
        file.attrs["behaviour"] = "a sine gait whose amplitude follows the target speed"
        file.attrs["tasks"] = json.dumps(list(tasks))
