"""TorchRL environments of the simulators; importing them loads no simulator."""

from llmdpd_torchrl.envs.base import SimulatorEnv, SimulatorStep
from llmdpd_torchrl.envs.gym_mujoco import (
    GYM_MUJOCO_TASKS,
    Dynamics,
    GymMujocoEnv,
    HalfCheetahVelocityEnv,
)
from llmdpd_torchrl.envs.gymnasium_env import GymnasiumEnv, SuccessRule, import_modules
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
    "GymnasiumEnv",
    "HalfCheetahVelocityEnv",
    "MetaWorldEnv",
    "MultiTaskEnv",
    "SimulatorEnv",
    "SimulatorStep",
    "SuccessRule",
    "import_modules",
    "make_simulator",
    "reset_simulator",
    "sample_goals",
]
