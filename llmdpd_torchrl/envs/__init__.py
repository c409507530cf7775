"""TorchRL environments, their raw simulators and scripted experts, and the task splits."""

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.envs.gym_mujoco import (
    GYM_MUJOCO_TASKS,
    Dynamics,
    GymMujocoEnv,
    HalfCheetahVelocityEnv,
)
from llmdpd_torchrl.envs.metaworld import MetaWorldEnv
from llmdpd_torchrl.envs.multitask import LanesEnv
from llmdpd_torchrl.envs.simulator import make_simulator, reset_simulator, sample_goals

__all__ = [
    "GYM_MUJOCO_TASKS",
    "Dynamics",
    "GymMujocoEnv",
    "HalfCheetahVelocityEnv",
    "LanesEnv",
    "MetaWorldEnv",
    "SimulatorEnv",
    "SimulatorStep",
    "make_simulator",
    "reset_simulator",
    "sample_goals",
]
