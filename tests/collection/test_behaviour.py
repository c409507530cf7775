"""What is done to an expert, step by step, and that the seed determines it."""

import numpy as np
import pytest

from llmdpd_torchrl.collection.behaviour import BehavingExpert, Behaviour
from llmdpd_torchrl.envs.metaworld import make_simulator, reset_simulator
from llmdpd_torchrl.utils.errors import ConfigError

WANTED = np.array([2.0, -0.5, 0.25, 0.6])
CLIPPED = np.array([1.0, -0.5, 0.25, 0.6])
HAND = np.array([0.0, 0.6, 0.2])


class Expert:
    """Wants the same at every observation."""

    def get_action(self, observation):
        return WANTED.copy()


def acted(steps=200, seed=0, move=0.0, clip=True, **behaviour):
    """Actions [T, 4] of an episode in which the hand moves by a multiple of the action."""
    actor = BehavingExpert(Expert(), Behaviour(**behaviour), seed=seed, max_steps=steps, clip=clip)
    observation, actions = np.zeros(39), []
    observation[:3] = HAND
    for _ in range(steps):
        wanted, action = actor.act(observation.copy())
        assert np.array_equal(wanted, CLIPPED.astype(np.float32))
        actions.append(action)
        observation[:3] += move * action[:3]
    return np.array(actions)


@pytest.mark.parametrize(
    "behaviour", [{"noise": 0.2}, {"hand_pushes": 0.1}, {"detour": True}, {"gain": 0.5}]
)
def test_the_seed_determines_what_is_done(behaviour):
    assert np.array_equal(acted(**behaviour), acted(**behaviour))
    is_random = not np.array_equal(acted(**behaviour), acted(**behaviour, seed=1))
    assert is_random == ("gain" not in behaviour)


def test_without_a_behaviour_the_expert_is_only_clipped():
    assert (acted() == CLIPPED.astype(np.float32)).all()


def test_the_gain_slows_the_movement_and_not_the_gripper():
    assert np.allclose(acted(gain=0.5), [0.5, -0.25, 0.125, 0.6])


def test_noise_is_added_to_the_clipped_expert_or_to_the_unclipped_one():
    assert abs(acted(2000, noise=0.1)[:, 1].std() - 0.1) < 0.01
    assert 0.4 < (acted(2000, noise=0.1)[:, 0] < 1).mean() < 0.6
    assert (acted(2000, noise=0.1, clip=False)[:, 0] == 1).all()


def test_a_push_is_one_direction_for_some_steps():
    actions = acted(20_000, hand_pushes=0.01)
    is_pushed = (actions[:, :3] != CLIPPED[:3].astype(np.float32)).any(-1)
    assert np.allclose(np.linalg.norm(actions[is_pushed, :3], axis=-1), 1, atol=1e-5)
    changes = np.flatnonzero((np.diff(actions, axis=0) != 0).any(-1)) + 1
    begins, ends = changes[:-1], changes[1:]
    pushes = is_pushed[begins]
    assert 120 < pushes.sum() < 250  # one in a hundred of the steps that are not pushed
    assert set((ends - begins)[pushes]) == set(range(4, 16))
    grips = actions[begins[pushes], 3].round(3)
    assert set(grips) == {np.float32(grip) for grip in (-1.0, 0.6, 1.0)}
    assert 0.55 < (abs(grips) == 1).mean() < 0.78


def test_a_detour_leads_up_or_aside_and_ends():
    for seed in range(10):
        moved = acted(100, seed=seed, move=0.01, detour=True)
        differs = (moved[:, :3] != CLIPPED[:3].astype(np.float32)).any(-1)
        begin, end = differs.nonzero()[0][[0, -1]]
        assert begin < 30
        assert 10 <= end - begin < 40
        begun = HAND + 0.01 * moved[:begin, :3].sum(0)
        reached = begun + 0.01 * moved[begin : end + 1, :3].sum(0)
        assert np.linalg.norm(reached - begun) < 0.2
        assert reached[2] > begun[2] - 0.02


def test_only_the_object_is_pushed():
    simulator = make_simulator("push-v3")
    reset_simulator(simulator, seed=0)
    before = simulator.data.qvel.copy()
    for probability in (0.0, 1.0):
        behaviour = Behaviour(object_pushes=probability)
        BehavingExpert(Expert(), behaviour, seed=0, max_steps=1).push_object(simulator)
        changed = (simulator.data.qvel != before).nonzero()[0].tolist()
        assert changed == ([9, 10, 11] if probability else [])
    simulator.close()


@pytest.mark.parametrize(
    "wrong", [{"gain": 0.0}, {"noise": -1}, {"hand_pushes": 2}, {"detour": "far"}, {"episodes": 0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=f"behaviour.{next(iter(wrong))} is"):
        Behaviour(**wrong)


def test_random_actions_are_uniform_and_not_the_expert_s():
    actions = acted(random=True, steps=500)
    assert np.abs(actions).max() <= 1
    assert np.abs(actions.mean(0)).max() < 0.1
    assert actions.std(0) == pytest.approx(np.full(4, 3**-0.5), abs=0.05)
