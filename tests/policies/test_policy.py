from typing import get_args

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.evaluation.rollout import EvaluationSettings, make_policy_env
from llmdpd_torchrl.modules.build import make_networks
from llmdpd_torchrl.modules.config import NetworkConfig, Prompt
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts import load_text_prompts
from llmdpd_torchrl.prompts.spacing import cut_trajectory
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

DIFFUSION = ("retrieved", "pooled")
"""How the method's own actor is conditioned; for sequences see test_sequence.py."""
SMALL = {
    "hidden": [16],
    "text_dim": 6,
    "trajectory_length": 16,
    "trajectory_width": 8,
    "trajectory_heads": 2,
}
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
REACH = 40


def make_policy(info=None, **changes):
    torch.manual_seed(0)
    config = NetworkConfig(**{**SMALL, "trained_task_ids": [REACH], **changes})
    networks = make_networks(config, observations=torch.randn(50, 39))
    return LLMDPDPolicy.from_networks(config, networks, info)


@pytest.mark.parametrize("conditioning", DIFFUSION)
@pytest.mark.parametrize("prompt", get_args(Prompt))
def test_who_reads_what(prompt, conditioning):
    config = NetworkConfig(**{**SMALL, "prompt": prompt, "conditioning": conditioning})
    networks = make_networks(config)
    policy = LLMDPDPolicy.from_networks(config, networks)
    trajectory, text = prompt in ("both", "trajectory"), prompt in ("both", "text")
    retrieves = trajectory and conditioning == "retrieved"
    embeds = text or (trajectory and not retrieves)
    for keys in (policy.actor.in_keys, networks.qvalues[0].in_keys):
        assert ("retrieved_context" in keys) == retrieves
        assert ("prompt_embedding" in keys) == embeds
        assert "observation" in keys
    assert (policy.encoder is not None) == embeds


def test_what_may_be_missing_is_filled(bank):
    policy = make_policy(text_dropout=0.2, trajectory_dropout=0.2)
    filled = policy.filled(PromptTables(trajectories=bank))
    assert filled.text.shape == (1, 6)
    assert filled.trajectories is bank
    assert policy.filled(PromptTables(TABLE)).task_ids == {-1}


def test_a_missing_table_is_named(bank):
    policy = make_policy()
    with pytest.raises(ConfigError, match=r"text=\.\.\."):
        policy.check_tables(PromptTables(None, bank))
    with pytest.raises(ConfigError, match=r"trajectories=\.\.\."):
        policy.check_tables(PromptTables(torch.zeros(50, 6)))
    policy = make_policy(trajectory_length=17)
    with pytest.raises(ConfigError, match="have 16 steps, this policy was trained with 17"):
        policy.check_tables(PromptTables(torch.zeros(50, 6), bank))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "all"},
        {"conditioning": "guessed"},
        {"hidden": []},
        {"diffusion_steps": 0},
        {"trajectory_width": 9},
        {"observation_keep": ["foot"]},
        {"activation": "cosh"},
    ],
)
def test_wrong_settings_end_in_one_line(changes):
    with pytest.raises(ConfigError) as caught:
        make_policy(**changes)
    assert "\n" not in str(caught.value)


def test_widths_that_do_not_fit_the_data():
    config = NetworkConfig(**SMALL)
    with pytest.raises(ConfigError, match="observations have 38 entries"):
        make_networks(config, observations=torch.randn(5, 38))
    with pytest.raises(ConfigError, match=r"embeddings are 7 wide, network\.text_dim is 6"):
        make_networks(config, text_embeddings=torch.randn(5, 7))


# --- prompted --------------------------------------------------------------------------------


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
    for demonstration in (one, two):  # at its first step, it is the nearest in every frame
        alone = policy.prompt(text=TABLE[0], trajectories=demonstration)
        observation, row = demonstration["observation"][:1], torch.zeros(1, dtype=torch.long)
        contexts = [each.retrieval(observation, row) for each in (alone, both)]
        torch.testing.assert_close(*contexts, rtol=1e-3, atol=1e-3)
    state = TensorDict({"observation": two["observation"]}, [len(two)])
    assert both(state)["action"].isfinite().all()


def test_words_are_embedded_by_the_policys_own_encoder():
    policy = make_policy({"text_encoder": "smollm2"}, prompt="text", text_dim=576)
    text = load_text_prompts()["reach-v3"].render()  # comes with the package: no model is needed
    assert policy.prompt(text=text).embedding.isfinite().all()
    with pytest.raises(ConfigError, match="which text encoder"):
        make_policy(prompt="text").prompt(text=text)


def test_it_says_which_trained_task_a_text_names(capsys):
    config = NetworkConfig(
        prompt="text", hidden=[8], text_mixture=True, text_dropout=0.2, text_dim=6,
        trained_task_ids=[3, REACH],
    )  # fmt: skip
    texts = torch.eye(6)[:2]
    networks = make_networks(config, text_embeddings=texts)
    policy = LLMDPDPolicy.from_networks(config, networks)
    assert policy.recognise(texts[1]) == {str(REACH): pytest.approx(1.0)}
    assert policy.recognise(texts.mean(0) + torch.eye(6)[5]) == {}
    policy.prompt(text=texts[0])
    assert not capsys.readouterr().err
    other = policy.prompt(text=texts.mean(0) + torch.eye(6)[5])
    assert "names no task of the training" in capsys.readouterr().err
    assert not other.embedding.any()
    with pytest.raises(ConfigError, match=r"network\.text_mixture=true"):
        make_policy(prompt="text").recognise(texts[0])


def test_a_text_alone_is_followed_by_the_nearest_tasks_demonstration(dataset, tmp_path):
    config = NetworkConfig(**{
        **SMALL, "prompt": "both", "text_mixture": True, "text_dropout": 0.2,
        "trajectory_dropout": 0.2, "trained_task_ids": [3, REACH],
    })  # fmt: skip
    texts = torch.eye(6)[:2]
    networks = make_networks(config, text_embeddings=texts)
    policy = LLMDPDPolicy.from_networks(config, networks)
    unlike = dataset.trajectory(1)[: len(dataset.trajectory(0))].clone()
    unlike["action"] = -unlike["action"]
    policy.library = {3: dataset.trajectory(0), REACH: unlike}
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    near = 0.9 * texts[1] + 0.1 * texts[0]
    assert loaded.nearest_tasks(near) == [REACH, 3]
    state = TensorDict({"observation": unlike["observation"]}, [len(unlike)])
    found = loaded.prompt(text=near)(state.clone())["action"]
    expected = policy.prompt(text=near, trajectories=unlike)(state.clone())["action"]
    other = policy.prompt(text=near, trajectories=dataset.trajectory(0))(state.clone())["action"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, other)


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


def test_tables_of_several_tasks(dataset):
    one, two, three = (dataset.trajectory(number) for number in range(3))
    policy = make_policy({"hide_goal": True})
    tables = policy.make_tables({3: TABLE[3], 1: TABLE[1]}, {1: [one, two], 3: [three]})
    assert torch.equal(tables.text[[1, 3]], TABLE[[1, 3]])
    assert tables.task_ids == {1, 3}
    assert tables.trajectories.is_concatenated
    assert not tables.trajectories.prompts["observation"][..., 36:].any()
    assert dataset.trajectory(0)["observation"][..., 36:].any()
    assert policy.make_tables({}, {1: [one], 3: [two]}).trajectories.length == 16
    with pytest.raises(ConfigError, match="reads no text"):
        make_policy(prompt="none").make_tables({0: TABLE[0]}, {})


def test_a_saved_policy_spaces_its_demonstrations(dataset, tmp_path):
    demonstration = dataset.trajectory(0)
    policy = make_policy(prompt="trajectory", trajectory_spacing={"hand_position": 0.01})
    policy.save_pretrained(tmp_path)
    again = LLMDPDPolicy.from_pretrained(tmp_path)
    assert again.config.spacing.units == policy.config.spacing.units
    bank = again.make_tables({}, {0: [demonstration]}).trajectories
    wanted = cut_trajectory(demonstration, 16, policy.config.spacing, recorded=True)
    assert (bank.prompts[0] == wanted).all()
    usual = cut_trajectory(demonstration, 16)
    assert (wanted.select(*usual.keys()) != usual).any()
    assert again.prompt(trajectories=[demonstration]).is_prompted


def test_another_text_encoder_is_refused():
    policy = make_policy({"text_encoder": "smollm2"}, prompt="text", text_dim=576)
    policy.info["text_encoder_identity"] = {"model": "another"}
    with pytest.raises(PromptError, match="whose model is 'another'"):
        policy.prompt(text="Task: Lock the door.")


# --- how it acts -----------------------------------------------------------------------------


def actions(policy, state, count=2):
    """Several actions in one state, each with another seed."""
    found = []
    for seed in range(count):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            found.append(policy(state.clone(), generator=generator)["action"])
    return found


def test_where_it_follows_a_demonstration_it_does_not_sample(demonstration):
    policy = make_policy(trajectory_dropout=0.1)
    state = TensorDict({"observation": torch.randn(2, 39)}, [2])
    for options, is_sampled in (
        ({"trajectories": demonstration}, False),
        ({"trajectories": demonstration, "trained_task": True}, True),
        ({}, True),
    ):
        one, other = actions(policy.prompt(text=TABLE[0], **options), state)
        assert (not torch.equal(one, other)) == is_sampled


def test_an_exploration_type_overrides_the_rule(demonstration):
    prompted = make_policy().prompt(text=TABLE[0], trajectories=demonstration)
    state = TensorDict({"observation": torch.randn(2, 39)}, [2])
    with set_exploration_type(ExplorationType.RANDOM):
        one, other = actions(prompted, state)
    assert not torch.equal(one, other)
    open_gate = make_policy().prompt(text=TABLE[0], trajectories=demonstration, trained_task=True)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        one, other = actions(open_gate, state)
    assert torch.equal(one, other)


def test_a_rollout_and_an_evaluation_take_the_same_route(bank, demonstration):
    """On an unseen task, without an exploration type: the same deterministic actions."""
    policy = make_policy(trained_task_ids=[])
    settings = EvaluationSettings(episodes_per_task=1, max_steps=6)
    simulator = settings.suite(["reach-v3"]).make("reach-v3")
    env = make_policy_env(policy, simulator, PromptTables(TABLE, bank))
    prompted = policy.prompt(text=TABLE[REACH], trajectories=demonstration)
    plain = MetaWorldEnv("reach-v3", num_goals=1, max_steps=6)
    with torch.no_grad():
        expected = env.rollout(6, policy)["action"]
        torch.testing.assert_close(plain.rollout(6, prompted)["action"], expected)
        state = env.reset()
        generator = torch.Generator().manual_seed(0)
        acted = settings.act(policy, state.unsqueeze(0), generator)[0]
        assert torch.equal(acted, policy(state)["action"])


def test_where_it_stands_still_its_demonstration_is_replayed(dataset):
    policy = make_policy(
        prompt="trajectory", trajectory_spacing={"hand_position": 0.01}, trained_task_ids=[]
    )
    tables = policy.make_tables({}, {REACH: [dataset.trajectory(0)]})
    settings = EvaluationSettings(episodes_per_task=1, max_steps=6)
    env = make_policy_env(policy, settings.suite(["reach-v3"]).make("reach-v3"), tables)
    state = env.reset()
    acted = settings.act(policy, state, torch.Generator())
    assert not torch.equal(acted, state["replayed_action"])
    state["is_recovering"] = torch.tensor([True])
    assert torch.equal(settings.act(policy, state, torch.Generator()), state["replayed_action"])


def test_without_its_inputs_it_says_what_to_do():
    with pytest.raises(PromptError, match=r"call what policy\.prompt\(\) returns"):
        make_policy()(TensorDict({"observation": torch.zeros(2, 39)}, [2]))


# --- number types and devices ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("conditioning", DIFFUSION)
def test_observations_of_any_number_type_are_cast(demonstration, conditioning, dtype):
    prompted = make_policy(conditioning=conditioning).prompt(
        text=TABLE[0], trajectories=demonstration
    )
    observation = torch.randint(-2, 2, (2, 39))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = prompted(TensorDict({"observation": observation.float()}, [2]))["action"]
        found = prompted(TensorDict({"observation": observation.to(dtype)}, [2]))["action"]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_prompts_of_any_number_type_are_cast(demonstration):
    policy = make_policy()
    state = TensorDict({"observation": torch.randn(2, 39)}, [2])
    one, other = (
        policy.prompt(text=text, trajectories=given)(state.clone())["action"]
        for text, given in ((TABLE[0], demonstration), (TABLE[0].double(), demonstration.double()))
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("conditioning", DIFFUSION)
def test_a_policy_in_float64_takes_its_prompts_along(demonstration, conditioning):
    policy = make_policy(conditioning=conditioning).double()
    prompted = policy.prompt(text=TABLE[0], trajectories=demonstration)
    state = TensorDict({"observation": torch.randn(2, 39)}, [2])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert prompted(state.clone())["action"].dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("conditioning", DIFFUSION)
def test_a_policy_on_a_gpu_acts_in_an_environment_on_the_cpu(demonstration, conditioning):
    policy = make_policy(conditioning=conditioning).to("cuda")
    prompted = policy.prompt(text=TABLE[0], trajectories=demonstration)
    env = MetaWorldEnv("reach-v3", num_goals=1, max_steps=3)
    with torch.no_grad():
        assert env.rollout(3, prompted)["action"].device.type == "cpu"


def test_a_hidden_goal_is_hidden_from_the_policy():
    policy = make_policy({"hide_goal": True}, prompt="none")
    observation = torch.randn(2, 39)
    hidden = observation.clone()
    hidden[:, 36:] = 0.0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        found, expected = (policy(TensorDict({"observation": o}, [2]))["action"]
                           for o in (observation, hidden))  # fmt: skip
    assert torch.equal(found, expected)
    assert observation[:, 36:].all()  # the caller's is as it was


# --- demonstrations --------------------------------------------------------------------------


def test_a_demonstration_must_be_finite(demonstration):
    policy = make_policy(prompt="trajectory")
    for key in ("observation", "action", ("next", "reward")):
        broken = demonstration.clone()
        broken[key][3, 0] = torch.nan
        with pytest.raises(PromptError, match="not finite in"):
            policy.prompt(trajectories=broken)


def test_a_demonstration_is_one_episode():
    env = MetaWorldEnv("reach-v3", num_goals=2, max_steps=5)
    policy = make_policy(prompt="trajectory")
    with pytest.raises(PromptError, match="demonstration 0 spans several episodes"):
        policy.prompt(trajectories=env.rollout(10, break_when_any_done=False))
    policy.prompt(trajectories=env.rollout(10))


@pytest.mark.parametrize("mark", ["truncated", "terminated", "trajectory_id", "traj_ids"])
def test_what_marks_two_episodes_is_seen_without_done(demonstration, mark):
    two = torch.cat([demonstration, demonstration]).exclude(("next", "done"))
    half = torch.arange(len(two)).unsqueeze(-1)
    if mark in ("truncated", "terminated"):
        two["next", mark] = half == len(demonstration) - 1
    else:
        two["trajectory_id" if mark == "trajectory_id" else ("collector", mark)] = (
            half >= len(demonstration)
        ).long()
    with pytest.raises(PromptError, match="demonstration 0 spans several episodes"):
        make_policy(prompt="trajectory").prompt(trajectories=two)


def test_a_text_embedding_must_be_finite():
    broken = TABLE[0].clone()
    broken[1] = torch.nan
    with pytest.raises(PromptError, match="not finite"):
        make_policy(prompt="text").prompt(text=broken)


def test_the_prompt_is_no_state_of_the_policy(demonstration, tmp_path):
    policy = make_policy()
    prompted = policy.prompt(text=TABLE[0], trajectories=demonstration)
    assert prompted.state_dict().keys() == policy.state_dict().keys()
    prompted.save_pretrained(tmp_path)
    assert not LLMDPDPolicy.from_pretrained(tmp_path).is_prompted
