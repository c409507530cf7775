"""Meta-World's tasks: the bare simulator with seeded placements, and the TorchRL environment.

Meta-World's own ``MT1(...)`` samples 50 goals (1.2 s) for every environment and hides the goal in
its ML benchmarks. Here a simulator is the bare environment class, and a goal is the vector of
random numbers (placement of object and goal) that the environment would sample at a reset.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tensordict import TensorDict
from torchrl.data import Categorical

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.tasks.table import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError, import_optional

if TYPE_CHECKING:
    import mujoco

EpisodeSteps = Annotated[int, Field(strict=True, ge=1, le=500)]
"""The lengths that Meta-World allows."""

_PURPOSES = {"collection": 0, "evaluation": 1}


def make_simulator(task: str, *, render: tuple[int, int] | None = None) -> Any:
    """Build the bare Meta-World environment of ``task`` with its goal in the observation.

    Args:
        task: a Meta-World task name such as ``"reach-v3"``.
        render: width and height in pixels of rendered images (RGB, camera ``corner2``); default: no
            rendering.

    Returns:
        a ``metaworld.sawyer_xyz_env.SawyerXYZEnv``; reset it with :func:`reset_simulator`.

    Raises:
        ConfigError: if the task is unknown, or Meta-World is not installed.
    """
    METAWORLD_TASKS.index(task)
    import_optional("metaworld", f"the simulator of {task}", "metaworld")
    options: dict[str, Any] = {}
    if render is not None:
        options = {"render_mode": "rgb_array", "camera_name": "corner2"}
        options |= {"width": render[0], "height": render[1]}
    simulator = _simulator_class(task)(**options)
    simulator._partially_observable = False
    del simulator.sawyer_observation_space  # a cached property, computed with the goal hidden
    simulator._set_task_called = True
    simulator.seeded_rand_vec = True
    return simulator


@functools.cache
def _simulator_class(task: str) -> Any:
    """Meta-World's class of ``task``, whose model is compiled once per process and then copied.

    Compiling takes 0.15 s, copying a few milliseconds, and an evaluation runs many simulators.
    """
    import mujoco  # here, so that the package can be imported without a simulator
    from metaworld.env_dict import ENV_CLS_MAP

    base: Any = ENV_CLS_MAP[task]

    def initialize(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy.copy(_compiled_model(self.fullpath))
        size = model.vis.global_
        size.offwidth = max(size.offwidth, self.width)
        size.offheight = max(size.offheight, self.height)
        return model, mujoco.MjData(model)

    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        render = None if self.render_mode is None else (self.width, self.height)
        return functools.partial(make_simulator, task, render=render), ()  # made again, not copied

    members = {"_initialize_simulation": initialize, "__reduce_ex__": reduce}
    return type(base.__name__, (base,), members)


@functools.lru_cache(maxsize=64)
def _compiled_model(path: str) -> mujoco.MjModel:
    import mujoco

    return mujoco.MjModel.from_xml_path(path)


def goal_seed(seed: int, task: str, index: int, purpose: str) -> int:
    """The seed of goal number ``index`` for ``"collection"`` or ``"evaluation"``.

    The seeds of different purposes are independent.
    """
    entropy = (seed, METAWORLD_TASKS.index(task), index, _PURPOSES[purpose])
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])


def reset_simulator(
    simulator: Any, *, seed: int | None = None, goal: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Start an episode with a sampled (``seed``) or a given (``goal``) placement.

    Args:
        simulator: from :func:`make_simulator`.
        seed: of the sampled placement of object and goal; exclusive with ``goal``.
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
    """Sample ``count`` placements of object and goal for ``task``, deterministically.

    Each is sampled by the environment's own reset, so that its rejection rules hold (for example
    against a goal too close to the object).
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


class MetaWorldEnv(SimulatorEnv):
    """One Meta-World task with a fixed list of goals, in float32, with ``success`` in the specs.

    Every reset takes the next goal of the list, or the one chosen by :meth:`choose_episode`. An
    episode is truncated after ``max_steps``, or, with ``stop_on_success``, at its first success;
    Meta-World never terminates.

    Args:
        task: a Meta-World task name such as ``"reach-v3"``.
        goals: placements of object and goal, from :func:`sample_goals`; default: ``num_goals``
            evaluation goals of ``seed``, which differ from those of every collection.
        num_goals: length of the default list.
        seed: of the default list.
        hide_goal: whether the goal entries of the observation are zero, as in Meta-World's ML
            benchmarks.
        max_steps: 1 to 500.
        stop_on_success: whether the first success truncates the episode, for evaluations in which
            success at any step counts.
        render: width and height in pixels of rendered images; default: no rendering.
        device: of the tensors.

    Keys: ``observation`` [39] float32, ``action`` [4] float32 in [-1, 1], ``task_id`` and
    ``goal_index`` [1] int64, and under ``"next"`` ``reward`` [1], ``success``, ``terminated``,
    ``truncated``, ``done`` [1] bool.

    Raises:
        ConfigError: if the task is unknown, ``max_steps`` is out of range, or Meta-World is not
            installed.

    Examples:
        >>> env = MetaWorldEnv("reach-v3", num_goals=2, max_steps=5)
        >>> rollout = env.rollout(10)
        >>> rollout.shape, rollout["next", "truncated"].squeeze(-1).tolist()
        (torch.Size([5]), [False, False, False, False, True])
        >>> env.close()
    """

    def __init__(
        self,
        task: str,
        *,
        goals: Sequence[NDArray[np.float64]] | None = None,
        num_goals: int = 50,
        seed: int = 0,
        hide_goal: bool = False,
        max_steps: int = 500,
        stop_on_success: bool = False,
        render: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not 1 <= max_steps <= 500:
            raise ConfigError(f"max_steps is {max_steps}: Meta-World allows 1 to 500")
        goals = tuple(goals) if goals is not None else sample_goals(task, num_goals, seed)
        if not goals:
            raise ConfigError(f"{task}: the list of goals is empty; give at least one")
        super().__init__(
            make_simulator(task, render=render),
            observation_dim=METAWORLD_OBSERVATION_LAYOUT["size"],
            action_dim=4,
            task_id=METAWORLD_TASKS.index(task),
            num_tasks=len(METAWORLD_TASKS),
            has_success=True,
            more={"goal_index": Categorical(len(goals), (1,), dtype=torch.int64)},
            device=device,
        )
        self.task = task
        self.goals = goals
        self.hide_goal = hide_goal
        self.max_steps = max_steps
        self.stop_on_success = stop_on_success
        self._next_goal = 0
        self._goal_index = 0
        self._steps = 0
        self._goal_entries = slice(*METAWORLD_OBSERVATION_LAYOUT["fields"]["goal_position"])

    def begin(self) -> NDArray[np.float32]:
        """Start on the next goal and return the first observation [39]."""
        self._goal_index = self._next_goal
        self._next_goal = (self._next_goal + 1) % len(self.goals)
        self._steps = 0
        return self._observation(reset_simulator(self.simulator, goal=self.goals[self._goal_index]))

    def advance(self, action: NDArray[np.float32]) -> SimulatorStep:
        """Act once, [4]."""
        observation, reward, _, _, info = self.simulator.step(action)
        self._steps += 1
        success = bool(info["success"])
        truncated = self._steps >= self.max_steps or (success and self.stop_on_success)
        return SimulatorStep(
            self._observation(observation), float(reward), False, truncated, success
        )

    def _observation(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        visible = observation.astype(np.float32)
        if self.hide_goal:
            visible[self._goal_entries] = 0.0
        return visible

    def _state(self, observation: NDArray[np.float32], success: bool) -> TensorDict:
        state = super()._state(observation, success)
        return state.set("goal_index", torch.tensor([self._goal_index], device=self.device))

    def _set_seed(self, seed: int | None) -> None:
        """Choose the first goal; a reset samples nothing else."""
        self._next_goal = (seed or 0) % len(self.goals)

    def choose_episode(self, index: int) -> None:
        """Let the next reset take goal number ``index`` of the list."""
        if not 0 <= index < len(self.goals):
            raise IndexError(f"{self.task} has {len(self.goals)} goals, not number {index}")
        self._next_goal = index
