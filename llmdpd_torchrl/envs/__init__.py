"""TorchRL environments of the simulators; importing them loads no simulator."""

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.envs.gym_mujoco import (
    GYM_MUJOCO_TASKS,
    Dynamics,
    GymMujocoEnv,
    HalfCheetahVelocityEnv,
)
from llmdpd_torchrl.envs.metaworld import (
    MetaWorldEnv,
    make_simulator,
    reset_simulator,
    sample_goals,
)
from llmdpd_torchrl.envs.multitask import MultiTaskEnv

__all__ = [
    "GYM_MUJOCO_TASKS",
    "Dynamics",
    "GymMujocoEnv",
    "HalfCheetahVelocityEnv",
    "MetaWorldEnv",
    "MultiTaskEnv",
    "SimulatorEnv",
    "SimulatorStep",
    "make_simulator",
    "reset_simulator",
    "sample_goals",
]
