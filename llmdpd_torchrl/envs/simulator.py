"""Meta-World's raw simulator: construction, seeded goals and resets, without TorchRL.

Meta-World's own ``MT1(...)`` builds 50 goals (1.2 s) for every environment and hides the goal in
its ML benchmarks. Here a simulator is the bare environment class, and a goal is the vector of
random numbers (object and goal placement) that the environment would have drawn at a reset.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ENV_CLS_MAP
from numpy.typing import NDArray

from llmdpd_torchrl.tasks.table import METAWORLD_TASKS

__all__ = ["goal_seed", "make_simulator", "reset_simulator", "sample_goals"]

_PURPOSES = {"collection": 0, "evaluation": 1}


def make_simulator(task: str, *, render: tuple[int, int] | None = None) -> Any:
    """Build the bare Meta-World environment of ``task`` with its goal in the observation.

    Args:
        task: a Meta-World task name such as ``"reach-v3"``.
        render: width and height in pixels of the frames (RGB, camera ``corner2``), if any are going
            to be taken.

    Returns:
        a ``metaworld.sawyer_xyz_env.SawyerXYZEnv``; reset it with :func:`reset_simulator`.

    Raises:
        ConfigError: if the task is unknown.
    """
    METAWORLD_TASKS.index(task)
    options: dict[str, Any] = {}
    if render is not None:
        options = {
            "render_mode": "rgb_array",
            "camera_name": "corner2",
            "width": render[0],
            "height": render[1],
        }
    simulator = _simulator_class(task)(**options)
    simulator._partially_observable = False
    del simulator.sawyer_observation_space  # a cached property, computed with the goal hidden
    simulator._set_task_called = True
    simulator.seeded_rand_vec = True
    return simulator


@functools.cache
def _simulator_class(task: str) -> Any:
    """Meta-World's class of ``task``, whose model is compiled once a process and then copied.

    Compiling takes 0.15 s, copying a few milliseconds, and an evaluation runs many simulators.
    """
    base: Any = ENV_CLS_MAP[task]

    def initialize(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy.copy(_compiled_model(self.fullpath))
        size = model.vis.global_
        size.offwidth = max(size.offwidth, self.width)
        size.offheight = max(size.offheight, self.height)
        return model, mujoco.MjData(model)

    return type(base.__name__, (base,), {"_initialize_simulation": initialize})


@functools.lru_cache(maxsize=64)
def _compiled_model(path: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(path)


def goal_seed(seed: int, task: str, index: int, purpose: str) -> int:
    """The seed of goal number ``index``: streams of different purposes never meet.

    Args:
        seed: the user's seed.
        task: task name.
        index: episode number.
        purpose: ``"collection"`` or ``"evaluation"``.
    """
    entropy = (seed, METAWORLD_TASKS.index(task), index, _PURPOSES[purpose])
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])


def reset_simulator(
    simulator: Any, *, seed: int | None = None, goal: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Start an episode on a drawn (``seed``) or a given (``goal``) placement of object and goal.

    Args:
        simulator: from :func:`make_simulator`.
        seed: draws the placement; exclusive with ``goal``.
        goal: the placement, as found in ``simulator._last_rand_vec`` after a seeded reset.

    Returns:
        the first observation, ``[39]`` float64.
    """
    if (seed is None) == (goal is None):
        raise ValueError("give exactly one of seed and goal")
    if goal is not None:
        simulator._freeze_rand_vec = True
        simulator._last_rand_vec = np.array(goal, dtype=np.float64)
    else:
        simulator._freeze_rand_vec = False
        simulator.seed(seed)
    observation, _ = simulator.reset()
    return observation


@functools.lru_cache(maxsize=256)
def sample_goals(
    task: str, count: int, seed: int, purpose: str = "evaluation"
) -> tuple[NDArray[np.float64], ...]:
    """``count`` placements of object and goal for ``task``: the same for the same arguments.

    Each is drawn by the environment's own reset, so that its rejection rules (a goal too close to
    the object, say) hold.
    """
    simulator = make_simulator(task)
    goals = []
    for index in range(count):
        reset_simulator(simulator, seed=goal_seed(seed, task, index, purpose))
        goal = np.array(simulator._last_rand_vec)
        goal.setflags(write=False)
        goals.append(goal)
    simulator.close()
    return tuple(goals)
