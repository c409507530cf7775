import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.baselines import retrieve_and_play_plus_policy, retrieve_and_play_policy
from llmdpd_torchrl.evaluation import EvaluationSettings, evaluate
from llmdpd_torchrl.evaluation.rollout import make_policy_env
from llmdpd_torchrl.modules import NetworkConfig
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError

MAKE = [retrieve_and_play_policy, retrieve_and_play_plus_policy]


@pytest.mark.parametrize("make", MAKE)
def test_one_demonstration_opens_a_window(dataset, backend, make):
    """No training, other placements than the demonstration's."""
    tables = PromptTables(trajectories=TrajectoryPromptBank.from_dataset(dataset, 128))
    settings = EvaluationSettings(episodes_per_task=3, max_steps=200)
    episodes = evaluate(
        make(), ["window-open-v3"], tables, settings=settings,
        backend=backend, progress=False,
    )  # fmt: skip
    assert all(episode.success for episode in episodes)


def test_it_acts_in_a_rollout(dataset):
    tables = PromptTables(trajectories=TrajectoryPromptBank.from_dataset(dataset, 128))
    policy = retrieve_and_play_policy()
    settings = EvaluationSettings(episodes_per_task=1, max_steps=5)
    simulator = settings.suite(["reach-v3"]).make("reach-v3")
    env = make_policy_env(policy, simulator, tables)
    rollout = env.rollout(5, policy.actor)
    assert rollout["action"].shape == (5, 4)
    assert env.action_spec.is_in(rollout["action"][0])
    context, parts = rollout["retrieved_context"], policy.config.context_layout.parts
    first, action = parts["suggestions"].start, parts["frame_0"].start
    assert torch.equal(rollout["action"][:, :3], context[:, first : first + 3])
    assert torch.equal(rollout["action"][:, 3], context[:, action + 3])  # the gripper's


def test_it_plays_actions_that_are_said_not_to_be_usable(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 128)
    prompts = bank.prompts.clone()
    prompts["has_action"] = torch.zeros_like(prompts["mask"])
    states_only = TrajectoryPromptBank(prompts, bank.task_id, bank.trajectory_id)
    observation, row = prompts["observation"][:4, 3], torch.arange(4)
    found = [
        retrieve_and_play_policy().make_retrieval(PromptTables(trajectories=each))(observation, row)
        for each in (bank, states_only)
    ]
    assert torch.equal(*found)


def test_a_replay_that_remembers_reads_no_plain_observations(dataset):
    with pytest.raises(ConfigError, match="environment_transforms"):
        retrieve_and_play_plus_policy().prompt(trajectories=[TensorDict({}, [3])])


def test_it_needs_a_trajectory_to_retrieve_from():
    for config in (NetworkConfig(prompt="text"), NetworkConfig(conditioning="pooled")):
        for make in MAKE:
            with pytest.raises(ConfigError, match="trajectory prompt"):
                make(config)
