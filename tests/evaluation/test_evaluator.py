import dataclasses
import os
import signal

import psutil
import pytest
import torch

from llmdpd_torchrl.evaluation import (
    EvaluationSettings,
    Evaluator,
    GymMujocoSuite,
    MetaWorldSuite,
    evaluate,
)
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.utils.errors import ConfigError, PromptError

TASKS = ("window-open-v3", "reach-v3")
SETTINGS = EvaluationSettings(episodes_per_task=4, max_steps=12, num_envs=3, group_size=4)
PLAIN = {"frames": [{"values": ["state"], "weights": [None]}]}


def make_policy(**changes):
    torch.manual_seed(0)
    config = NetworkConfig(**{"hidden": [8], "prompt": "none", "trained_task_ids": [40], **changes})
    return LLMDPDPolicy.from_networks(config, make_networks(config))


@dataclasses.dataclass(frozen=True)
class FaultySuite(MetaWorldSuite):
    """What happens at the fourth step of the second episode of reaching."""

    fault: str = ""

    def make(self, task, *, render=None):
        env = super().make(task, render=render)
        advance = env.advance

        def faulty(action):
            if env._goal_index == 1 and env._steps == 3 and task == "reach-v3":
                if self.fault == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise FloatingPointError("the arm came off\nand more")
            return advance(action)

        env.advance = faulty
        return env


@pytest.mark.integration
@pytest.mark.parametrize("acting", ["sampled", "deterministic"])
def test_the_result_does_not_depend_on_the_workers(acting):
    policy = make_policy()
    settings = dataclasses.replace(SETTINGS, acting=acting)
    results = [
        evaluate(policy, TASKS, settings=settings, workers=workers, progress=False)
        for workers in (1, 2, 4)
    ]
    assert results[0] == results[1] == results[2]
    assert [(e.task, e.goal_index) for e in results[0]] == [(t, g) for t in TASKS for g in range(4)]
    assert all(e.length == 12 and e.error is None for e in results[0])


@pytest.mark.integration
def test_workers_are_reused_and_results_are_the_same_again():
    with Evaluator(TASKS, SETTINGS, workers=2, progress=False) as evaluator:
        first = evaluator(make_policy())
        processes = evaluator.backend.idle_processes
        again = evaluator(make_policy())
        assert sorted(processes) == sorted(evaluator.backend.idle_processes)
        assert len(evaluator.timings) == 2
        assert all(t.simulator + t.policy < t.total for t in evaluator.timings)
    assert first == again
    assert not any(psutil.pid_exists(process) for process in processes)


@pytest.mark.parametrize("fault", [pytest.param("killed", marks=pytest.mark.integration), "raises"])
def test_what_fails_is_reported_and_the_rest_goes_on(backend, fault):
    goals = SETTINGS.suite(TASKS).goals
    options = {"backend": backend, "progress": False, "settings": SETTINGS}
    whole = MetaWorldSuite(goals, max_steps=12)
    faulty = FaultySuite(goals, max_steps=12, fault=fault)
    expected = evaluate(make_policy(), TASKS, suite=whole, **options)
    found = evaluate(make_policy(), TASKS, suite=faulty, **options)
    assert [(e.task, e.goal_index) for e in found] == [(e.task, e.goal_index) for e in expected]
    failed = [e for e in found if e.error is not None]
    assert ("reach-v3", 1) in [(e.task, e.goal_index) for e in failed]
    assert not any(e.success for e in failed)
    if fault == "raises":  # its episode alone
        assert len(failed) == 1
        assert failed[0].error == "the simulator failed: FloatingPointError: the arm came off"
        assert failed[0].length == 4
    else:  # those that the worker was in the middle of
        assert len(failed) <= SETTINGS.num_envs
        assert {e.error for e in failed} == {"the worker process was killed by SIGKILL"}
    for one, other in zip(found, expected, strict=True):
        if one.error is None:
            assert one.episode_return == pytest.approx(other.episode_return, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class BrokenSuite(MetaWorldSuite):
    def make(self, task, *, render=None):
        raise OSError("no such simulator")


def test_a_group_that_cannot_begin_fails_completely(backend):
    suite = BrokenSuite(SETTINGS.suite(TASKS).goals)
    options = {"settings": SETTINGS, "suite": suite, "backend": backend, "progress": False}
    found = evaluate(make_policy(), TASKS, **options)
    assert len(found) == 8
    (error,) = {e.error for e in found}
    assert error.endswith("the simulator could not be made: OSError: no such simulator")


class Broken(torch.nn.Module):
    in_keys = ("observation",)

    def forward(self, states, **options):
        raise ArithmeticError("the policy is broken")


def test_a_policy_that_raises_is_no_failure_of_its_episodes(backend):
    policy = make_policy()
    policy.actor = Broken()
    with pytest.raises(ArithmeticError, match="the policy is broken") as error:
        evaluate(policy, TASKS, settings=SETTINGS, backend=backend, progress=False)
    assert "in a worker process" in str(error.value.__cause__)


def test_a_suite_that_no_worker_can_import(backend):
    class Suite(BrokenSuite):
        def make(self, task, *, render=None):
            return MetaWorldSuite.make(self, task, render=render)

    suite = Suite(SETTINGS.suite(TASKS).goals, max_steps=12)
    options = {"settings": SETTINGS, "backend": backend, "progress": False}
    found = evaluate(make_policy(), TASKS, suite=suite, **options)
    assert found == evaluate(make_policy(), TASKS, **options)


def test_other_environments_by_their_normalised_score(backend):
    suite = GymMujocoSuite(
        {"hopper": {"task": "Hopper-v4"}, "heavy": {"task": "Hopper-v4", "task_id": 1}},
        max_steps=20,
    )
    policy = make_policy(action_dim=3, observation_fields={"state": (0, 11)},
                         observation_keep=["state"],
                         retrieval=PLAIN)  # fmt: skip
    settings = EvaluationSettings(episodes_per_task=3)
    options = {"settings": settings, "suite": suite, "backend": backend, "progress": False}
    found = evaluate(policy, suite.tasks, **options)
    assert found == evaluate(policy, suite.tasks, **options)
    assert len({e.episode_return for e in found[:3]}) == 3  # other initial states
    for episode in found:
        assert not episode.success
        assert episode.score == pytest.approx(suite.score("hopper", episode.episode_return))


def test_starts_are_for_json():
    starts = SETTINGS.suite(TASKS).starts()
    assert list(starts) == list(TASKS)
    assert all(len(goals) == 4 and all(isinstance(x, float) for x in goals[0])
               for goals in starts.values())  # fmt: skip


def test_wrong_requests():
    with pytest.raises(ConfigError, match="unknown task"):
        Evaluator(["nothing-v3"])
    for tasks in ((), ("reach-v3", "reach-v3"), ("sweep-v3",)):
        with pytest.raises(ConfigError, match="name each once"):
            Evaluator(tasks, SETTINGS, suite=SETTINGS.suite(TASKS))
    with pytest.raises(ConfigError, match="the suite has 4 goals"):
        Evaluator(TASKS, EvaluationSettings(episodes_per_task=5), suite=SETTINGS.suite(TASKS))
    with pytest.raises(ConfigError, match="workers is 0"):
        Evaluator(TASKS, workers=0)
    with pytest.raises(ConfigError, match="must name a task or a target_velocity"):
        GymMujocoSuite({"mine": {}})
    jog = {"jog": {"target_velocity": 1.0}}
    with pytest.raises(ConfigError, match="has no reference returns"):
        GymMujocoSuite(jog)
    with pytest.raises(ConfigError, match="it must be larger"):
        GymMujocoSuite(jog, references={"jog": (-50.0, -200.0)})


def test_running_at_a_speed_is_scored_between_its_references():
    jog = {"target_velocity": 0.0, "task_id": 3, "max_steps": 10}
    suite = GymMujocoSuite({"jog": jog}, references={"jog": (-10.0, 0.0)})
    env = suite.make("jog")
    assert int(env.reset()["task_id"]) == suite.task_id("jog") == 3
    rollout = env.rollout(100)
    assert len(rollout) == 10
    total = float(rollout["next", "reward"].sum())
    assert suite.score("jog", total) == pytest.approx(100 * (total + 10) / 10)
    env.close()


def test_prompts_must_be_there_for_every_environment():
    suite = GymMujocoSuite({"hopper": {"task": "Hopper-v4", "task_id": 5}})
    policy = make_policy(prompt="trajectory", action_dim=3, observation_fields={"state": (0, 11)},
                         observation_keep=["state"], trajectory_length=4, conditioning="pooled",
                         retrieval=PLAIN)  # fmt: skip
    settings = EvaluationSettings(episodes_per_task=1)
    tables = PromptTables(trajectories=TrajectoryPromptBank.empty(4, 11, 3))
    with pytest.raises(PromptError, match="no trajectory prompt for hopper"):
        evaluate(policy, ["hopper"], tables, settings=settings, suite=suite, workers=1)


def test_a_prompted_policy_needs_no_tables(dataset, backend):
    torch.manual_seed(0)
    config = NetworkConfig(prompt="trajectory", hidden=[8], trajectory_length=16)
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    demonstration = dataset.trajectory(0)
    settings = EvaluationSettings(episodes_per_task=2, max_steps=5)
    with Evaluator(["reach-v3"], settings, backend=backend, progress=False) as evaluator:
        task = evaluator.suite.task_id("reach-v3")
        tables = policy.make_tables({}, {task: [demonstration]})
        expected = evaluator(policy, tables)
        assert evaluator(policy.prompt(trajectories=demonstration)) == expected
        with pytest.raises(ConfigError, match="prompted already: leave the tables out"):
            evaluator(policy.prompt(trajectories=demonstration), tables)
