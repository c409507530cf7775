import dataclasses

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.errors import ConfigError, PromptError
from llmdpd_torchrl.evaluation.film import record_episode
from llmdpd_torchrl.evaluation.rollout import (
    EvaluationSettings,
    evaluate,
    make_policy_env,
    run_episodes,
)
from llmdpd_torchrl.evaluation.video import rendering_backend
from llmdpd_torchrl.modules.networks import NetworkConfig, make_networks
from llmdpd_torchrl.modules.policy import LLMDPDPolicy

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
            **changes,
        }
    )
    return LLMDPDPolicy.from_networks(config, make_networks(config), {"trained_task_ids": [40]})


@pytest.mark.parametrize("stochastic", [True, False])
def test_every_episode_counts_whatever_the_workers(bank, stochastic):
    policy = make_policy()
    settings = dataclasses.replace(SETTINGS, stochastic=stochastic)
    options = {"text_table": TABLE, "bank": bank, "settings": settings, "progress": False}
    one = evaluate(policy, TASKS, workers=1, **options)
    two = evaluate(policy, TASKS, workers=2, **options)
    assert one == two
    assert [(e.task, e.goal_index) for e in one] == [(t, g) for t in TASKS for g in (0, 1)]
    assert all(e.length == 12 and e.error is None for e in one)
    if stochastic:  # the draws depend on the seed of the evaluation, not on torch's generator
        other = dataclasses.replace(settings, seed=1)
        assert settings.generator(0).initial_seed() != settings.generator(1).initial_seed()
        assert settings.generator(0).initial_seed() != other.generator(0).initial_seed()


@pytest.mark.parametrize("stochastic", [None, True, False])
def test_draws_are_made_where_the_state_is_seen(stochastic):
    policy = make_policy(prompt="trajectory")
    settings = dataclasses.replace(SETTINGS, stochastic=stochastic)
    states = TensorDict(
        {
            "observation": torch.randn(1, 39).expand(4, 39),
            "prompt_context": torch.randn(1, policy.config.context_parts["known"].stop).expand(
                4, -1
            ),
            "prompt": {"observation_gate": torch.tensor([[0.0], [1.0], [0.0], [1.0]])},
        },
        [4],
    )
    with torch.no_grad():
        one, other = (
            settings.act(policy, states, torch.Generator().manual_seed(n)) for n in (0, 1)
        )
    drawn = (one != other).any(-1)
    expected = {None: [False, True] * 2, True: [True] * 4, False: [False] * 4}[stochastic]
    assert drawn.tolist() == expected
    assert "action" not in states.keys()  # noqa: SIM118


@pytest.mark.parametrize("conditioning", ["retrieved", "pooled"])
@pytest.mark.parametrize("prompt", ["both", "text", "trajectory", "none"])
def test_lockstep_equals_one_environment_after_another(bank, prompt, conditioning):
    policy = make_policy(prompt=prompt, conditioning=conditioning)
    settings = dataclasses.replace(SETTINGS, stochastic=False)  # draws are made for the whole batch
    together = run_episodes(policy, TASKS, [1], TABLE, bank, settings)
    alone = [run_episodes(policy, [t], [1], TABLE, bank, settings)[0] for t in TASKS]
    for one, other in zip(sorted(together, key=lambda e: TASKS.index(e.task)), alone, strict=True):
        assert one.task == other.task
        assert one.episode_return == pytest.approx(other.episode_return, rel=1e-4)


def test_a_policy_that_reaches_the_goal_is_scored(monkeypatch, bank):
    """The expert's own rule for reaching, in the actor's place."""
    policy = make_policy(prompt="none")

    def actor(state, generator):
        observation = state["observation"]
        action = torch.zeros(len(observation), 4)
        action[:, :3] = 10 * (observation[:, 36:39] - observation[:, :3])
        return state.set("action", action.clamp(-1, 1))

    actor.in_keys = ["observation"]
    policy.actor = actor
    settings = EvaluationSettings(episodes_per_task=3, max_steps=300)
    results = run_episodes(policy, ["reach-v3"], [0, 1, 2], None, None, settings)
    assert all(e.success and e.success_at_end and e.length < 300 for e in results)
    failed = run_episodes(policy, ["door-open-v3"], [0], None, None, SETTINGS)
    assert not failed[0].success
    assert failed[0].length == 12


def test_the_environment_shows_what_the_policy_reads(bank):
    policy = make_policy()
    env = make_policy_env(policy, "reach-v3", text_table=TABLE, bank=bank, settings=SETTINGS)
    assert isinstance(env.base_env, MetaWorldEnv)
    env.base_env.choose_goal(1)
    state = env.reset()
    assert state["goal_index"].item() == 1
    for key in policy.actor.in_keys:
        assert key in state.keys(True)
    assert state["prompt", "observation_gate"].item() == 1.0
    env.close()


def test_wrong_requests(bank):
    with pytest.raises(ConfigError, match="unknown task"):
        evaluate(make_policy(), ["nothing-v3"], text_table=TABLE, bank=bank, progress=False)
    with pytest.raises(ConfigError, match="give a bank"):
        evaluate(make_policy(), TASKS, text_table=TABLE, progress=False)
    with pytest.raises(PromptError, match="no trajectory prompt"):
        run_episodes(make_policy(), ["sweep-v3"], [0], TABLE, bank, SETTINGS)
    for wrong in (
        {"episodes_per_task": 0},
        {"max_steps": 0},
        {"stochastic": 0},
        {"stochastic": "x"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EvaluationSettings(**wrong)


@pytest.mark.skipif(rendering_backend()[0] is None, reason=rendering_backend()[1])
def test_a_film(tmp_path, bank):
    import imageio.v3 as iio

    path = tmp_path / "reach.mp4"
    success = record_episode(
        make_policy(),
        "reach-v3",
        path,
        caption="reach",
        text_table=TABLE,
        bank=bank,
        settings=SETTINGS,
        every=4,
        size=(160, 120),
        progress=False,
    )
    frames = iio.imread(path)
    assert success is False
    assert len(frames) == 4  # steps 0, 4 and 8, and the last state
    assert frames.std() > 10


@pytest.mark.parametrize("conditioning", ["retrieved", "pooled"])
@pytest.mark.parametrize("shown", ["text", "trajectory", "nothing"])
def test_a_policy_that_learnt_to_do_without_a_prompt_acts_without(bank, conditioning, shown):
    policy = make_policy(conditioning=conditioning, text_dropout=0.2, trajectory_dropout=0.2)
    tables = {
        "text_table": TABLE if shown == "text" else None,
        "bank": bank if shown == "trajectory" else None,
    }
    episodes = evaluate(policy, TASKS, settings=SETTINGS, workers=1, progress=False, **tables)
    assert len(episodes) == 4
    strict = make_policy(conditioning=conditioning)
    with pytest.raises(ConfigError, match="this policy reads"):
        evaluate(strict, TASKS, settings=SETTINGS, workers=1, progress=False, **tables)
