"""The base class of the environments: specs hold for simulators of any float type."""

import subprocess
import sys

import gymnasium
import torch
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import SimulatorEnv, SimulatorStep


class Pole(SimulatorEnv):
    """A simulator with float64 observations, which are passed on unchanged."""

    def begin(self):
        return self.simulator.reset(seed=0)[0]

    def advance(self, action):
        observation, reward, *ends, _ = self.simulator.step(action)
        return SimulatorStep(observation, float(reward), *ends)

    def choose_episode(self, index):
        pass

    def _set_seed(self, seed):
        pass


def test_observations_are_cast_to_the_spec():
    simulator = gymnasium.make("InvertedPendulum-v5")
    env = Pole(simulator, observation_dim=4, action_dim=1, task_id=0)
    check_env_specs(env)
    assert env.rollout(2)["next", "observation"].dtype == torch.float32
    env.close()


class Numbered(Pole):
    """One whose flags are numbers."""

    def advance(self, action):
        step = super().advance(action)
        return step._replace(terminated=float(step.terminated), truncated=int(step.truncated))


def test_flags_of_any_number_type_keep_the_spec():
    simulator = gymnasium.make("InvertedPendulum-v5")
    env = Numbered(simulator, observation_dim=4, action_dim=1, task_id=0)
    check_env_specs(env)
    env.close()


def test_importing_the_environments_needs_no_simulator():
    code = "import sys, llmdpd_torchrl.envs; sys.exit('metaworld' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
