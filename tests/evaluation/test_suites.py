"""Suites of Gymnasium's environments: scores, success, numbered episodes, classes of a notebook."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from llmdpd_torchrl.baselines import retrieve_and_play_policy
from llmdpd_torchrl.collection.record import record_episodes
from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.envs import SuccessRule
from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator, GymnasiumSuite
from llmdpd_torchrl.modules import NetworkConfig
from llmdpd_torchrl.prompts import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError

RULE = SuccessRule(min_reward=0.0)


def test_tasks_with_references_are_scored_and_others_not():
    suite = GymnasiumSuite(
        {"up": {"task": "Pendulum-v1"}, "still": {"task": "Pendulum-v1", "success": RULE}},
        {"up": (-1000.0, 0.0)},
        seed=5,
    )
    assert suite.score("up", -250.0) == 75.0
    assert suite.score("still", -250.0) is None
    assert not suite.make("up").has_success
    assert suite.make("still").has_success
    assert suite.starts()["still"]["success"]["min_reward"] == 0.0
    assert suite.starts()["still"]["seed"] == 5


@pytest.mark.parametrize(
    ("variant", "references", "says"),
    [
        ({"task": "Pendulum-v1"}, {}, "neither success nor references"),
        ({"task": "Pendulum-v1"}, {"up": (1.0, 1.0)}, "must be larger"),
    ],
)
def test_what_cannot_be_counted_is_refused(variant, references, says):
    with pytest.raises(ConfigError, match=says):
        GymnasiumSuite({"up": variant}, references)


@pytest.mark.integration
def test_a_class_of_a_notebook_is_evaluated_by_workers():
    class Line(gymnasium.Env):  # pickled by value, as a notebook's
        observation_space = spaces.Box(-9, 9, (1,))
        action_space = spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.place = self.np_random.uniform(-1, 0, 1).astype(np.float32)
            return self.place, {}

        def step(self, action):
            self.place = self.place + action
            return self.place, float(self.place[0] > 2), False, False, {}

    suite = GymnasiumSuite(
        {"right": {"task": Line, "success": SuccessRule(min_reward=1.0), "max_steps": 8}}
    )
    arrays = record_episodes(suite.make("right"), lambda place: [1.0], 2, progress=False)
    data = load_episodes({"right": arrays})
    bank = TrajectoryPromptBank.from_dataset(data, 4, trained_on=False)
    config = NetworkConfig.from_dataset(data, prompt="trajectory", trajectory_length=4)
    policy = retrieve_and_play_policy(config)
    settings = EvaluationSettings(episodes_per_task=4)
    with Evaluator(["right"], settings, suite=suite, workers=1, progress=False) as evaluator:
        episodes = evaluator(policy, PromptTables(trajectories=bank))
    assert [episode.success for episode in episodes] == [True] * 4
    assert len({episode.length for episode in episodes} | {3, 4}) <= 3
