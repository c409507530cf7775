"""TorchRL environments, their raw simulators and scripted experts, and the task splits."""

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.envs.gym_mujoco import (
    GYM_MUJOCO_TASKS,
    Dynamics,
    GymMujocoEnv,
    HalfCheetahVelocityEnv,
)
from llmdpd_torchrl.envs.lanes import LanesEnv
from llmdpd_torchrl.envs.metaworld import MetaWorldEnv
from llmdpd_torchrl.envs.simulator import make_simulator, reset_simulator, sample_goals
from llmdpd_torchrl.envs.splits import SPLITS, TaskSplit, make_split

__all__ = [
    "GYM_MUJOCO_TASKS",
    "SPLITS",
    "Dynamics",
    "GymMujocoEnv",
    "HalfCheetahVelocityEnv",
    "LanesEnv",
    "MetaWorldEnv",
    "SimulatorEnv",
    "SimulatorStep",
    "TaskSplit",
    "make_simulator",
    "make_split",
    "reset_simulator",
    "sample_goals",
]
