import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, make_policy_env
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import load_text_prompts
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

SMALL = {"hidden": [16], "text_dim": 6, "trajectory_length": 16, "trajectory_width": 8}
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
REACH = 40


def make_policy(info=None, **changes):
    torch.manual_seed(0)
    config = NetworkConfig(
        **{**SMALL, "trajectory_heads": 2, "trained_task_ids": [REACH], **changes}
    )
    networks = make_networks(config, observations=torch.randn(50, 39))
    return LLMDPDPolicy.from_networks(config, networks, info)


@pytest.fixture
def demonstration(dataset):
    return dataset.trajectory(0)


@pytest.mark.parametrize("conditioning", ["retrieved", "pooled"])
@pytest.mark.parametrize("prompt", ["both", "text", "trajectory", "none"])
def test_it_acts_as_the_policy_does_under_the_transforms(bank, demonstration, conditioning, prompt):
    policy = make_policy(conditioning=conditioning, prompt=prompt)
    settings = EvaluationSettings(episodes_per_task=1, max_steps=6)
    simulator = settings.suite(["reach-v3"]).make("reach-v3")
    env = make_policy_env(policy, simulator, PromptTables(TABLE, bank))
    prompted = policy.prompt(
        text=TABLE[REACH] if prompt in ("both", "text") else None,
        trajectories=demonstration if prompt in ("both", "trajectory") else (),
        trained_task=True,
    )
    plain = MetaWorldEnv("reach-v3", num_goals=1, max_steps=6)
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = env.rollout(6, policy.actor)["action"]
        torch.testing.assert_close(plain.rollout(6, prompted)["action"], expected)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_any_batch_shape(demonstration, shape):
    prompted = make_policy().prompt(text=TABLE[0], trajectories=[demonstration])
    data = prompted(TensorDict({"observation": torch.randn(*shape, 39)}, shape))
    assert set(data.keys()) == {"observation", "action"}
    assert data["action"].shape == (*shape, 4)
    assert prompted(observation=torch.randn(*shape, 39)).shape == (*shape, 4)


def test_the_gate_is_open_on_trained_tasks_and_without_a_demonstration(demonstration):
    policy = make_policy(trajectory_dropout=0.1)
    assert policy.prompt(text=TABLE[0], trajectories=demonstration, trained_task=True).is_open
    assert policy.prompt(text=TABLE[0]).is_open
    assert not policy.prompt(text=TABLE[0], trajectories=demonstration).is_open


def test_several_demonstrations_are_averaged_where_they_are_pooled(dataset):
    policy = make_policy(conditioning="pooled")
    one, two = dataset.trajectory(0), dataset.trajectory(1)
    embeddings = [
        policy.prompt(text=TABLE[0], trajectories=given).embedding
        for given in (one, two, [one, two])
    ]
    torch.testing.assert_close(embeddings[2], (embeddings[0] + embeddings[1]) / 2)


def test_of_several_demonstrations_the_nearest_is_retrieved_from(dataset):
    policy = make_policy()
    one, two = dataset.trajectory(0), dataset.trajectory(1)
    both = policy.prompt(text=TABLE[0], trajectories=[one, two])
    row = torch.zeros(len(two), dtype=torch.long)
    observation = two["observation"]
    alone = policy.prompt(text=TABLE[0], trajectories=two)
    distance = both.retrieval.parts["distance"]
    contexts = [each.retrieval(observation, row) for each in (alone, both)]
    assert (contexts[1][:, distance] <= contexts[0][:, distance] + 1e-4).all()
    near = contexts[0][:, distance.start] < 1e-2  # a step of the second: read from there
    assert near.any()
    torch.testing.assert_close(contexts[1][near], contexts[0][near], rtol=1e-3, atol=1e-3)
    state = TensorDict({"observation": observation}, [len(two)])
    assert both(state)["action"].isfinite().all()


def test_words_are_embedded_by_the_policys_own_encoder():
    policy = make_policy({"text_encoder": "smollm2"}, prompt="text", text_dim=576)
    text = load_text_prompts()["reach-v3"].render()  # comes with the package: no model is needed
    assert policy.prompt(text=text).embedding.isfinite().all()
    with pytest.raises(ConfigError, match="which text encoder"):
        make_policy(prompt="text").prompt(text=text)


def test_wrong_prompts_are_named(demonstration):
    with pytest.raises(ConfigError, match="reads text prompts"):
        make_policy().prompt(trajectories=demonstration)
    with pytest.raises(ConfigError, match="reads trajectory prompts"):
        make_policy().prompt(text=TABLE[0])
    with pytest.raises(ConfigError, match="reads no text"):
        make_policy(prompt="trajectory").prompt(text=TABLE[0], trajectories=demonstration)
    with pytest.raises(ConfigError, match="reads no trajectory"):
        make_policy(prompt="text").prompt(text=TABLE[0], trajectories=demonstration)
    with pytest.raises(PromptError, match=r"shape \[5\], the policy was trained with \[6\]"):
        make_policy(prompt="text").prompt(text=torch.randn(5))
    policy = make_policy(prompt="trajectory")
    with pytest.raises(PromptError, match="demonstration 0 has nothing as action"):
        policy.prompt(trajectories=demonstration.exclude("action"))
    with pytest.raises(PromptError, match="batch size"):
        policy.prompt(trajectories=[demonstration[:0]])
    narrow = demonstration.clone()
    narrow["observation"] = narrow["observation"][:, :5]
    with pytest.raises(PromptError, match=r"as observation: the policy was trained with \[T, 39\]"):
        policy.prompt(trajectories=narrow)
