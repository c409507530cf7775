"""An audit says what own, wrong, other and no prompts do to a policy, and how sure that is."""

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.evaluation.audit import (
    OWN,
    Condition,
    TaskPrompts,
    conditions,
    judge,
    run_conditions,
)
from llmdpd_torchrl.evaluation.statistics import EpisodeResult
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError

DRAWER = ("drawer-open-v3", "drawer-close-v3")
TASKS = (*DRAWER, "reach-v3", "door-lock-v3")
WRONG_TEXT, WORDS = "another task's text", "the text in other words"


def policy(prompt="both", **changes):
    config = NetworkConfig(prompt=prompt, hidden=[8], trajectory_length=16, text_dim=3, **changes)
    return LLMDPDPolicy.from_networks(config, make_networks(config))


def rollout(value):
    steps = {"observation": torch.full((20, 39), value), "action": torch.zeros(20, 4)}
    return TensorDict({**steps, "next": {"reward": torch.zeros(20, 1)}}, [20])


def prompts(tasks=TASKS, paraphrase="in other words"):
    return {
        task: TaskPrompts(f"do {task}", paraphrase, (rollout(float(number)),))
        for number, task in enumerate(tasks)
    }


def episodes(solves, tasks=TASKS, count=20):
    return [
        EpisodeResult(task, goal, solves(task, goal), False, 0.0, 9)
        for task in tasks
        for goal in range(count)
    ]


def audit_of(**conditions_by_name):
    own = prompts()
    tried = [Condition(OWN, own, TASKS)]
    found = {OWN: episodes(lambda task, goal: goal < 18)}
    for name, solves in conditions_by_name.items():
        tried.append(Condition(name, own, TASKS))
        found[name] = episodes(solves)
    return judge(tried, found)


def test_own_prompts_come_first_and_each_kind_is_changed_alone():
    found = {one.name: one for one in conditions(policy(), prompts())}
    assert next(iter(found)) == OWN
    wrong = found[WRONG_TEXT].prompts
    assert [wrong[task].text for task in TASKS] == [
        "do reach-v3", "do door-lock-v3", "do drawer-open-v3", "do drawer-close-v3",
    ]  # fmt: skip
    assert all(wrong[task].demonstrations == prompts_of.demonstrations
               for task, prompts_of in found[OWN].prompts.items())  # fmt: skip
    other = found["another task's demonstration"].prompts["reach-v3"]
    assert other.text == "do reach-v3"
    assert float(other.demonstrations[0]["observation"][0, 0]) == 0.0


def test_only_tasks_that_share_a_scene_swap_its_texts():
    found = {one.name: one for one in conditions(policy("text"), prompts())}
    swapped = found["the text of another task of its scene"]
    assert set(swapped.tasks) == set(DRAWER)
    assert swapped.prompts["drawer-open-v3"].text == "do drawer-close-v3"
    assert swapped.prompts["reach-v3"].text == "do reach-v3"


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, set()),
        ({"text_dropout": 0.2}, {"no text"}),
        ({"text_dropout": 0.2, "trajectory_dropout": 0.2},
         {"no text", "no demonstration", "no prompt"}),
    ],
)  # fmt: skip
def test_a_prompt_is_left_out_only_of_a_policy_that_can_do_without(changes, without):
    names = {one.name for one in conditions(policy(**changes), prompts())}
    assert {name for name in names if name.startswith("no ")} == without


def test_what_cannot_be_asked_of_one_task_without_paraphrase():
    names = [one.name for one in conditions(policy("text"), prompts(TASKS[:1], None))]
    assert names == [OWN, "random letters"]


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("none", {}, "reads no prompt"),
        ("text", {"text": None}, "no text for reach-v3"),
        ("trajectory", {"demonstrations": ()}, "no demonstration of reach-v3"),
    ],
)
def test_prompts_that_are_missing(kind, changes, says):
    shown = {"text": "reach", "demonstrations": (rollout(0.0),)} | changes
    with pytest.raises(ConfigError, match=says):
        conditions(policy(kind), {"reach-v3": TaskPrompts(**shown)})


def test_tables_hold_what_the_condition_shows(monkeypatch):
    def embed(texts, *args, **kwargs):
        return torch.tensor([[float(len(str(text)))] * 3 for text in texts])

    monkeypatch.setattr("llmdpd_torchrl.policies.pretrained.embed_prompts", embed)
    ids = {task: number for number, task in enumerate(TASKS)}
    found = {one.name: one for one in conditions(policy(), prompts())}
    own, wrong = (found[name].tables(policy(), ids) for name in (OWN, WRONG_TEXT))
    assert own.text[:, 0].tolist() == [len(f"do {task}") for task in TASKS]
    assert wrong.text[:, 0].tolist() == own.text[:, 0].roll(-2).tolist()
    assert torch.equal(own.trajectories.task_id, wrong.trajectories.task_id)
    shuffled = found["a demonstration with shuffled steps"].tables(policy(), ids)
    assert shuffled.trajectories.prompts.shape == own.trajectories.prompts.shape


@pytest.mark.parametrize(
    ("solves", "outcome", "says"),
    [
        (lambda task, goal: goal < 4, "costs", "listens to its text"),
        (lambda task, goal: goal < 18, "same", "does not listen"),
        (lambda task, goal: True, "helps", "misleads"),
        (lambda task, goal: goal % 10 != 3, "unclear", "can't be told"),
    ],
)
def test_the_verdict_on_another_text(solves, outcome, says):
    (finding,) = audit_of(**{WRONG_TEXT: solves}).findings
    assert finding.outcome == outcome
    assert says in finding.sentence
    assert finding.difference.low <= finding.difference.value <= finding.difference.high


def test_a_condition_is_compared_on_the_tasks_that_it_changes():
    name = "the text of another task of its scene"
    tried = [Condition(OWN, prompts(), TASKS), Condition(name, prompts(), DRAWER)]
    found = {
        OWN: episodes(lambda task, goal: True),
        name: episodes(lambda task, goal: task not in DRAWER),
    }
    (finding,) = judge(tried, found).findings
    assert (finding.tasks, finding.value, finding.difference.value) == (2, 0.0, 100.0)


def test_the_page_has_a_verdict_a_table_and_what_was_not_tried():
    audit = audit_of(**{WRONG_TEXT: lambda task, goal: goal < 4})
    page = audit.markdown("mine")
    assert page.startswith("# Does mine listen to its prompts?")
    assert "**Its text.** It listens to its text: another task's costs 70 points" in page
    assert "| own prompts |  | 90 |  |" in page
    assert "Its demonstration" not in page
    tried = [Condition(OWN, prompts(), TASKS)]
    left = judge(tried, {OWN: episodes(lambda task, goal: True)}, {WORDS: "no language model"})
    assert f"Not tried: {WORDS}: no language model." in left.markdown("mine")


def test_what_was_evaluated_before_is_not_evaluated_again():
    asked, kept = [], []

    def evaluator(policy, tables):
        asked.append(tables)
        return episodes(lambda task, goal: True)

    done = {OWN: episodes(lambda task, goal: True), "gone": []}
    tables = {OWN: "own", WRONG_TEXT: "wrong"}
    found = run_conditions(
        evaluator, None, tables, done=done, keep=lambda some: kept.append(sorted(some))
    )
    assert asked == ["wrong"]
    assert list(found) == [OWN, WRONG_TEXT]
    assert kept == [sorted(tables)]
