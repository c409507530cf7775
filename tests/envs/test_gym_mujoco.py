"""Gymnasium's locomotion tasks: specs, seeds, ends, rewards and edited physics."""

import mujoco
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import GYM_MUJOCO_TASKS, Dynamics, GymMujocoEnv, HalfCheetahVelocityEnv
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture
def make():
    environments = []

    def make(task="Hopper-v4", **options):
        kind = GymMujocoEnv if isinstance(task, str) else HalfCheetahVelocityEnv
        environments.append(kind(task, **options))
        return environments[-1]

    yield make
    for environment in environments:
        environment.close(raise_if_closed=False)


def run(env, steps=20):
    """A rollout under actions that are a function of the step alone."""
    generator = torch.Generator().manual_seed(0)
    size = env.action_spec.shape[-1]

    def act(observation):
        return torch.rand(size, generator=generator) * 2 - 1

    return env.rollout(steps, TensorDictModule(act, ["observation"], ["action"]))


@pytest.mark.parametrize("task", [*GYM_MUJOCO_TASKS, 2.0])
def test_specs(make, task):
    check_env_specs(make(task))


@pytest.mark.parametrize("task", GYM_MUJOCO_TASKS)
def test_it_steps_as_gymnasium_does(make, task):
    env = make(task, seed=3)
    rollout = run(env, 50)
    simulator = make(task).simulator
    observation, _ = simulator.reset(seed=3)
    for step in rollout:
        assert np.array_equal(step["observation"].numpy(), observation.astype(np.float32))
        observation, reward, terminated, truncated, _ = simulator.step(step["action"].numpy())
        assert step["next", "reward"].item() == np.float32(reward)
        assert step["next", "terminated"].item() == terminated
        assert step["next", "truncated"].item() == truncated


def test_equal_seeds_equal_episodes(make):
    first, second = make(seed=5), make(seed=6)
    episodes = [run(first), run(first)]
    assert not torch.equal(episodes[0]["observation"][0], episodes[1]["observation"][0])
    second.set_seed(5)
    for episode in episodes:
        assert torch.equal(run(second)["observation"], episode["observation"])


def test_a_fall_terminates_and_the_limit_truncates(make):
    fallen = run(make(), 1000)
    assert len(fallen) < 1000
    assert fallen["next", "terminated"][-1]
    assert not fallen["next", "truncated"].any()
    limited = run(make("HalfCheetah-v4", max_steps=7), 1000)
    assert len(limited) == 7
    assert limited["next", "truncated"].squeeze(-1).tolist() == [False] * 6 + [True]
    assert not limited["next", "terminated"].any()


def test_the_velocity_task_rewards_closeness_to_its_speed(make):
    """Against the simulator's own account: v = forward reward, effort = control cost / 0.1."""
    env = make(1.5, task_id=4, seed=1)
    plain = make("HalfCheetah-v4", seed=1)
    rollout, reference = run(env), run(plain)
    assert torch.equal(rollout["observation"], reference["observation"])
    effort = reference["action"].square().sum(-1, keepdim=True)
    velocity = reference["next", "reward"] + 0.1 * effort
    expected = -(velocity - 1.5).abs() - 0.05 * effort
    torch.testing.assert_close(rollout["next", "reward"], expected)
    assert (rollout["task_id"] == 4).all()
    assert len(run(env, 1000)) == 200


@pytest.mark.parametrize("factor", ["gravity", "mass", "damping", "friction"])
def test_each_factor_changes_the_model_and_the_motion(make, factor):
    usual, changed = make("Walker2d-v4"), make("Walker2d-v4", dynamics=Dynamics(**{factor: 1.5}))
    before, after = usual.simulator.unwrapped.model, changed.simulator.unwrapped.model
    arrays = {
        "gravity": (before.opt.gravity, after.opt.gravity),
        "mass": (before.body_mass, after.body_mass),
        "damping": (before.dof_damping, after.dof_damping),
        "friction": (before.geom_friction, after.geom_friction),
    }
    for name, (original, edited) in arrays.items():
        assert np.allclose(edited, original * (1.5 if name == factor else 1.0)), name
    assert not torch.equal(run(usual)["observation"][-1], run(changed)["observation"][-1])


def test_masses_reach_what_the_solver_reads(make):
    usual, heavy = make(), make(dynamics=Dynamics(mass=2.0))
    before, after = usual.simulator.unwrapped.model, heavy.simulator.unwrapped.model
    assert np.allclose(after.body_inertia, 2 * before.body_inertia)
    assert np.allclose(after.body_subtreemass, 2 * before.body_subtreemass)
    # The sliding joints carry no armature: their inverse weight is that of the masses.
    assert np.allclose(after.dof_invweight0[:2], before.dof_invweight0[:2] / 2, rtol=0.05)


def test_factors_of_one_leave_the_physics_bit_for_bit(make):
    plain, same = run(make()), run(make(dynamics=Dynamics()))
    assert torch.equal(plain["next", "observation"], same["next", "observation"])


def test_an_edited_model_does_not_leak_into_other_environments(make):
    before = run(make())
    make(dynamics=Dynamics(gravity=0.1))
    assert torch.equal(run(make())["next", "observation"], before["next", "observation"])


def test_mistakes_are_named(make):
    with pytest.raises(ConfigError, match="unknown task 'Hopper-v5': use one of HalfCheetah-v4"):
        make("Hopper-v5")
    with pytest.raises(ConfigError, match="max_steps is 0"):
        make(max_steps=0)
    with pytest.raises(ConfigError, match="target_velocity is nan"):
        make(float("nan"))
    with pytest.raises(ConfigError, match=r"dynamics.mass is 0.0"):
        Dynamics(mass=0.0)


@pytest.mark.parametrize("task", GYM_MUJOCO_TASKS)
def test_the_camera_goes_with_the_body(task, make):
    env = make(task, render=(64, 48))
    env.reset()
    simulator = env.simulator.unwrapped
    model, data = simulator.model, simulator.data
    camera = simulator.mujoco_renderer.camera_id
    places = []
    for distance in (0.0, 30.0):
        data.qpos[0] = distance
        mujoco.mj_forward(model, data)
        places.append(data.cam_xpos[camera][0])
    assert places[1] - places[0] == pytest.approx(30.0)
