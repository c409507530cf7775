"""Gymnasium's MuJoCo locomotion tasks as TorchRL environments."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.utils.errors import ConfigError, import_optional
from llmdpd_torchrl.utils.settings import Positive, checked_dataclass

#: Version 4 has the rewards and models of D4RL's data; version 5 changes Walker2d's friction and
#: the reward of Hopper's last step.
GYM_MUJOCO_TASKS = ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")


@checked_dataclass("dynamics", frozen=True)
class Dynamics:
    """Factors on the physics of a model, 1 being the original's.

    Args:
        gravity: on gravity.
        mass: on the masses and inertias of all bodies.
        damping: on the damping of all joints.
        friction: on the friction coefficients of all geoms.

    Raises:
        ConfigError: if a factor is not positive.

    Examples:
        >>> Dynamics(gravity=0.5)
        Dynamics(gravity=0.5, mass=1.0, damping=1.0, friction=1.0)
    """

    gravity: Positive = 1.0
    mass: Positive = 1.0
    damping: Positive = 1.0
    friction: Positive = 1.0

    def apply(self, model: Any, data: Any) -> None:
        """Edit a live ``mujoco.MjModel`` in place; the next reset starts from the edited model."""
        if self == Dynamics():
            return  # recomputing the model's constants would change their last digits
        model.opt.gravity[:] *= self.gravity
        model.body_mass[:] *= self.mass
        model.body_inertia[:] *= self.mass
        model.dof_damping[:] *= self.damping
        model.geom_friction[:] *= self.friction
        # The solver reads subtree masses and inverse weights, which depend on these.
        import mujoco  # here, so that the package can be imported without a simulator

        mujoco.mj_setConst(model, data)


class GymMujocoEnv(SimulatorEnv):
    """HalfCheetah, Hopper or Walker2d, version 4, in float32.

    The first reset after :meth:`set_seed` restarts the sequence of initial states. Terminated and
    truncated are Gymnasium's: a fall, and the time limit.

    Args:
        task: one of :data:`GYM_MUJOCO_TASKS`.
        seed: of the initial states.
        task_id: the constant value of ``task_id``, for data and policies of several tasks.
        dynamics: changes of the physics.
        max_steps: time limit; the default is D4RL's, 1000.
        render: width and height in pixels of rendered images; default: no rendering.
        device: of the tensors.

    Keys: ``observation`` [O] and ``action`` [A] float32, actions in [-1, 1], ``task_id`` [1] int64,
    and under ``"next"`` ``reward`` [1], ``terminated``, ``truncated``, ``done`` [1] bool.

    Raises:
        ConfigError: if the task is unknown, ``max_steps`` is below 1, or MuJoCo is not installed.

    Examples:
        >>> env = GymMujocoEnv("Hopper-v4", seed=1, dynamics=Dynamics(gravity=0.5))
        >>> rollout = env.rollout(5)
        >>> rollout["observation"].shape, rollout["action"].shape
        (torch.Size([5, 11]), torch.Size([5, 3]))
        >>> env.close()
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int = 0,
        task_id: int = 0,
        dynamics: Dynamics | None = None,
        max_steps: int = 1000,
        render: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if task not in GYM_MUJOCO_TASKS:
            raise ConfigError(f"unknown task {task!r}: use one of {', '.join(GYM_MUJOCO_TASKS)}")
        if max_steps < 1:
            raise ConfigError(f"max_steps is {max_steps}: it must be at least 1")
        import_optional("mujoco", f"the simulator of {task}", "metaworld")
        dynamics = dynamics or Dynamics()
        options: dict[str, Any] = {"max_episode_steps": max_steps}
        if render is not None:
            # Gymnasium's default camera does not follow the body.
            options |= {"render_mode": "rgb_array", "camera_name": "track"}
            options |= {"width": render[0], "height": render[1]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there is a version 5
            simulator = gymnasium.make(task, **options)
        unwrapped: Any = simulator.unwrapped
        dynamics.apply(unwrapped.model, unwrapped.data)
        super().__init__(
            simulator,
            observation_dim=unwrapped.observation_space.shape[0],
            action_dim=unwrapped.action_space.shape[0],
            task_id=task_id,
            seed=seed,
            device=device,
        )
        self.task = task
        self.dynamics = dynamics

    def begin(self) -> NDArray[np.float32]:
        """Start in the next initial state and return the first observation [O]."""
        return self.reset_simulator().astype(np.float32)

    def advance(self, action: NDArray[np.float32]) -> SimulatorStep:
        """Act once, [A]."""
        observation, reward, terminated, truncated, info = self.simulator.step(action)
        return SimulatorStep(
            observation.astype(np.float32),
            self._reward(action, float(reward), info),
            bool(terminated),
            bool(truncated),
        )

    def _reward(self, action: NDArray[np.float32], reward: float, info: dict[str, Any]) -> float:
        """The reward of a step, from the simulator's own."""
        return reward


class HalfCheetahVelocityEnv(GymMujocoEnv):
    """HalfCheetah with a target speed that is not observed: a family of tasks.

    The reward is -|v - target| - 0.05 |action|², v being the mean forward speed over the step, as
    in PEARL (Rakelly et al. 2019), and episodes have 200 steps. The target is not in the
    observation; a policy can only learn it from its prompt.

    Args:
        target_velocity: in m/s.
        max_steps: time limit.
        **options: of :class:`GymMujocoEnv`.

    Raises:
        ConfigError: if the target is not finite, or as there.

    Examples:
        >>> env = HalfCheetahVelocityEnv(2.0)
        >>> bool((env.rollout(3)["next", "reward"] <= 0).all())
        True
        >>> env.close()
    """

    def __init__(self, target_velocity: float, *, max_steps: int = 200, **options: Any) -> None:
        if not np.isfinite(target_velocity):
            raise ConfigError(f"target_velocity is {target_velocity}: give a speed in m/s")
        super().__init__("HalfCheetah-v4", max_steps=max_steps, **options)
        self.target_velocity = target_velocity

    def _reward(self, action: NDArray[np.float32], reward: float, info: dict[str, Any]) -> float:
        effort = float(np.square(action.astype(np.float64)).sum())
        return -abs(float(info["x_velocity"]) - self.target_velocity) - 0.05 * effort
