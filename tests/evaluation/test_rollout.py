import dataclasses

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.envs import GymMujocoEnv, MetaWorldEnv
from llmdpd_torchrl.evaluation import EpisodeResult, EvaluationSettings, evaluate
from llmdpd_torchrl.evaluation.rollout import GroupTiming, make_policy_env, run_group
from llmdpd_torchrl.evaluation.suites import EpisodeSpec
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

TASKS = ("window-open-v3", "reach-v3")
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
SETTINGS = EvaluationSettings(episodes_per_task=2, max_steps=12)


def make_policy(**changes):
    torch.manual_seed(0)
    config = NetworkConfig(
        **{
            "hidden": [8],
            "text_dim": 6,
            "trajectory_length": 16,
            "trajectory_width": 8,
            "trajectory_heads": 2,
            "trained_task_ids": [40],
            **changes,
        }
    )
    return LLMDPDPolicy.from_networks(config, make_networks(config))


class Scripted(torch.nn.Module):
    """A function in the place of an actor."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, state, *, generator=None):
        return self.act(state, generator)


def run(policy, episodes, settings, bank=None, number=0):
    """One group's results, by episode, and everything that it yielded."""
    tasks = list(dict.fromkeys(task for task, _ in episodes))
    events = list(
        run_group(
            policy, settings.suite(tasks), [EpisodeSpec(*e) for e in episodes], number,
            tables=PromptTables(TABLE, bank), settings=settings,
        )
    )  # fmt: skip
    results = [event for event in events if isinstance(event, EpisodeResult)]
    return {(e.task, e.goal_index): e for e in results}, events


@pytest.mark.parametrize("acting", [None, "sampled", "deterministic"])
def test_draws_are_made_where_the_state_is_seen(acting):
    policy = make_policy(prompt="trajectory")
    settings = dataclasses.replace(SETTINGS, acting=acting)
    states = TensorDict(
        {
            "observation": torch.randn(1, 39).expand(4, 39),
            "retrieved_context": torch.randn(1, policy.config.context_layout.width).expand(4, -1),
            "prompt": {"observation_gate": torch.tensor([[0.0], [1.0], [0.0], [1.0]])},
        },
        [4],
    )
    with torch.no_grad():
        one, other = (
            settings.act(policy, states, torch.Generator().manual_seed(n)) for n in (0, 1)
        )
    drawn = (one != other).any(-1)
    expected = {None: [False, True] * 2, "sampled": [True] * 4, "deterministic": [False] * 4}
    assert drawn.tolist() == expected[acting]
    assert "action" not in states.keys()  # noqa: SIM118


@pytest.mark.parametrize("conditioning", ["retrieved", "pooled"])
@pytest.mark.parametrize("prompt", ["both", "text", "trajectory", "none"])
def test_episodes_at_once_equal_one_environment_after_another(bank, prompt, conditioning):
    policy = make_policy(prompt=prompt, conditioning=conditioning)
    # Draws are made for the whole batch.
    settings = dataclasses.replace(SETTINGS, acting="deterministic", num_envs=2)
    episodes = [(task, start) for start in (1, 0) for task in TASKS]
    together, events = run(policy, episodes, settings, bank=bank)
    assert [e for e in events if isinstance(e, EpisodeSpec)] == episodes  # in order
    assert isinstance(events[-1], GroupTiming)
    assert len(together) == 4  # in two sub-environments
    for episode in episodes:
        alone, _ = run(policy, [episode], settings, bank=bank)
        one, other = together[episode], alone[episode]
        assert (one.length, one.success) == (other.length, other.success) == (12, False)
        assert one.episode_return == pytest.approx(other.episode_return, rel=1e-4)
        assert one.action_change == pytest.approx(other.action_change, rel=1e-2)


def test_the_noise_belongs_to_the_seed_and_the_group(bank):
    policy = make_policy()
    settings = dataclasses.replace(SETTINGS, acting="sampled")
    episodes = [(task, 0) for task in TASKS]
    torch.manual_seed(0)
    first, _ = run(policy, episodes, settings, bank=bank)
    torch.manual_seed(1)  # whatever torch's own generator does
    again, _ = run(policy, episodes, settings, bank=bank)
    other, _ = run(policy, episodes, settings, bank=bank, number=1)
    assert first == again != other


def test_a_policy_that_reaches_the_goal_is_scored(monkeypatch, bank):
    """The expert's own rule for reaching, in the actor's place."""
    policy = make_policy(prompt="none")

    def actor(state, generator):
        observation = state["observation"]
        action = torch.zeros(len(observation), 4)
        action[:, :3] = 10 * (observation[:, 36:39] - observation[:, :3])
        return state.set("action", action.clamp(-1, 1))

    policy.actor = Scripted(actor)
    settings = EvaluationSettings(episodes_per_task=3, max_steps=300)
    results, _ = run(policy, [("reach-v3", start) for start in range(3)], settings)
    assert len(results) == 3
    assert all(e.success and e.success_at_end and e.length < 300 for e in results.values())
    whole = dataclasses.replace(settings, stop_on_success=False, max_steps=120)
    results, _ = run(policy, [("reach-v3", 0)], whole)
    assert results["reach-v3", 0].success
    assert results["reach-v3", 0].length == 120
    failed, _ = run(policy, [("door-open-v3", 0)], SETTINGS)
    assert not failed["door-open-v3", 0].success
    assert failed["door-open-v3", 0].length == 12


def test_how_much_the_actions_change():
    policy = make_policy(prompt="none")
    values = iter([0.0, 0.5, 0.1] * 10)

    def actor(state, generator):
        return state.set("action", torch.full((len(state), 4), next(values)))

    policy.actor = Scripted(actor)
    settings = dataclasses.replace(SETTINGS, max_steps=3)
    results, _ = run(policy, [("reach-v3", 0)], settings)
    assert results["reach-v3", 0].action_change == pytest.approx((0.5 + 0.4) / 2)


def test_an_action_that_is_not_finite_fails_its_episode_alone():
    policy = make_policy(prompt="none")
    steps = []

    def actor(state, generator):
        steps.append(len(state))
        action = torch.zeros(len(state), 4)
        if len(steps) == 3:
            action[1] = torch.nan
        return state.set("action", action)

    policy.actor = Scripted(actor)
    results, _ = run(policy, [("reach-v3", 0), ("reach-v3", 1)], SETTINGS)
    assert results["reach-v3", 0].error is None
    assert "nan" in results["reach-v3", 1].error
    assert not results["reach-v3", 1].success
    assert steps == [2, 2, 2] + [1] * 9


def test_settings_as_results_store_them():
    stored = EvaluationSettings(num_envs=3).to_dict()
    assert stored["lanes"] == 3
    assert stored["group_size"] == 128
    assert "num_envs" not in stored


def test_every_group_has_all_tasks():
    settings = EvaluationSettings(episodes_per_task=50, group_size=60)
    groups = settings.groups(["a", "b", "c"])
    assert sorted(map(len, groups)) == [50, 50, 50]
    assert len({episode for group in groups for episode in group}) == 150
    assert all({task for task, _ in group} == {"a", "b", "c"} for group in groups)
    assert EvaluationSettings(episodes_per_task=1).groups(["a"]) == [[("a", 0)]]


def test_the_environment_shows_what_the_policy_reads(bank):
    policy = make_policy()
    simulator = SETTINGS.suite(["reach-v3"]).make("reach-v3")
    env = make_policy_env(policy, simulator, PromptTables(TABLE, bank))
    assert isinstance(env.base_env, MetaWorldEnv)
    env.base_env.choose_episode(1)
    state = env.reset()
    assert state["goal_index"].item() == 1
    for key in policy.actor.in_keys:
        assert key in state.keys(True)
    assert state["prompt", "observation_gate"].item() == 1.0
    env.close()


def test_a_prompted_policy_is_evaluated_with_its_own_prompt(bank, dataset):
    policy = make_policy()
    prompted = policy.prompt(text=TABLE[0], trajectories=dataset.trajectory(0))
    with pytest.raises(ConfigError, match="prompted already"):
        prompted.check_tables(PromptTables(TABLE, bank))
    suite, episodes = SETTINGS.suite(["reach-v3"]), [EpisodeSpec("reach-v3", 0)]
    (_, result, _) = run_group(
        prompted, suite, episodes, 0, tables=PromptTables(), settings=SETTINGS
    )
    assert (result.length, result.error) == (12, None)


def test_prompts_of_another_kind_are_refused_in_one_line(dataset):
    with pytest.raises(ConfigError, match=r"the prompts are a list: give PromptTables"):
        make_policy().check_tables([dataset.trajectory(0)])
    with pytest.raises(PromptError, match="the trajectories are a list: give a"):
        PromptTables(trajectories=[dataset.trajectory(0)])
    bank = TrajectoryPromptBank.from_rollouts({40: [dataset.trajectory(0)]}, 16)
    make_policy().check_tables(PromptTables(TABLE, bank))


def test_wrong_requests(bank):
    tables = PromptTables(TABLE, bank)
    with pytest.raises(ConfigError, match="unknown task"):
        evaluate(make_policy(), ["nothing-v3"], tables, progress=False)
    with pytest.raises(ConfigError, match=r"trajectories=\.\.\."):
        evaluate(make_policy(), TASKS, PromptTables(TABLE), progress=False)
    with pytest.raises(PromptError, match="no trajectory prompt for sweep-v3"):
        evaluate(make_policy(), ["sweep-v3"], tables, progress=False)
    for wrong in (
        {"episodes_per_task": 0},
        {"max_steps": 0},
        {"num_envs": 0},
        {"group_size": 0},
        {"acting": 0},
        {"acting": "x"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EvaluationSettings(**wrong)


@pytest.mark.parametrize("conditioning", ["retrieved", "pooled"])
@pytest.mark.parametrize("shown", ["text", "trajectory", "nothing"])
def test_a_policy_trained_without_a_prompt_acts_without(bank, backend, conditioning, shown):
    policy = make_policy(conditioning=conditioning, text_dropout=0.2, trajectory_dropout=0.2)
    tables = PromptTables(
        TABLE if shown == "text" else None, bank if shown == "trajectory" else None
    )
    episodes = evaluate(policy, TASKS, tables, settings=SETTINGS, backend=backend, progress=False)
    assert len(episodes) == 4
    strict = make_policy(conditioning=conditioning)
    with pytest.raises(ConfigError, match="this policy reads"):
        evaluate(strict, TASKS, tables, settings=SETTINGS, backend=backend, progress=False)


def test_an_environment_of_other_widths_is_refused():
    policy = make_policy(prompt="none")
    with pytest.raises(ConfigError, match="11 observation and 3 action entries, the"):
        make_policy_env(policy, GymMujocoEnv("Hopper-v4"), PromptTables())
