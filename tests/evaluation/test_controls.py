import pytest
import torch

from llmdpd_torchrl.baselines import retrieve_and_play_policy
from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator
from llmdpd_torchrl.evaluation.controls import (
    CONTROLS,
    apply_control,
    check_control,
    confusion,
    random_strings,
    shuffle_steps,
    swap_prompts,
)
from llmdpd_torchrl.modules import NetworkConfig
from llmdpd_torchrl.prompts import embed_texts, load_text_prompts
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import ConfigError

TABLE = torch.arange(50.0).unsqueeze(-1)
REACH, WINDOW = (METAWORLD_TASKS.index(f"{name}-v3") for name in ("reach", "window-open"))
TASKS = ("reach-v3", "window-open-v3")


@pytest.mark.parametrize(
    ("control", "text", "trajectory"),
    [
        ("both", True, True),
        ("text", True, False),
        ("trajectory", False, True),
        ("none", False, False),
    ],
)
def test_what_is_shown(bank, control, text, trajectory):
    tables = apply_control(control, TASKS, PromptTables(TABLE, bank))
    assert (tables.text is TABLE, tables.trajectories is bank) == (text, trajectory)
    missing = [value is None for value in (tables.text, tables.trajectories)]
    assert missing == [not text, not trajectory]


def test_demonstrations_of_the_tasks_whose_texts_are_nearest(bank):
    trained, table = ("reach-v3", "push-v3", "window-open-v3"), torch.randn(50, 4)
    lock, reach, push, window = map(
        METAWORLD_TASKS.index, ("door-lock-v3", "reach-v3", "push-v3", "window-open-v3")
    )
    table[[reach, push, window]] = torch.eye(4)[:3]
    table[lock] = torch.tensor([0.1, 0.9, 0.5, 0.0])
    own = TrajectoryPromptBank(
        bank.prompts[torch.tensor([0, 1, 2])], torch.tensor([reach, push, window]), torch.arange(3)
    )
    tables = apply_control("nearest_text", ["door-lock-v3"], PromptTables(table, own),
                           trained=trained)  # fmt: skip
    found = tables.trajectories
    assert found.task_id.tolist() == [lock] * 3
    order = [1, 2, 0]  # push, window, reach
    assert torch.equal(found.prompts["observation"], own.prompts["observation"][order])
    assert found.first(1).task_id.tolist() == [lock]
    with pytest.raises(ConfigError, match="use prompt=both"):
        apply_control("nearest_text", ["door-lock-v3"], PromptTables(None, own), trained=trained)


def test_texts_in_other_words_and_no_words_at_all(bank, monkeypatch):
    asked = []

    def embed(texts, encoder):
        asked.extend(texts)
        return torch.zeros(len(texts), 1)

    monkeypatch.setattr("llmdpd_torchrl.evaluation.controls.embed_texts", embed)
    tables = apply_control("random_text", TASKS, PromptTables(TABLE, bank))
    assert tables.trajectories is None
    assert tables.text.shape == (50, 1)
    prompts = load_text_prompts()
    expected = [prompts[name].render() for name in METAWORLD_TASKS.names]
    assert [len(text) for text in asked] == [len(text) for text in expected]
    assert not set(asked) & set(expected)
    assert random_strings(expected) == asked  # the same in every run
    tables = apply_control("paraphrase", TASKS, PromptTables(TABLE, bank))
    assert tables.trajectories is None
    paraphrase = embed_texts([prompts["reach-v3"].paraphrases[0]])[0]
    assert torch.equal(tables.text[REACH], paraphrase)


def test_every_task_is_shown_anothers_prompts(bank):
    tables = swap_prompts(TASKS, PromptTables(TABLE, bank))
    table, swapped = tables.text, tables.trajectories
    assert (table[REACH].item(), table[WINDOW].item()) == (WINDOW, REACH)
    others = [task for task in range(50) if task not in (REACH, WINDOW)]
    assert torch.equal(table[others], TABLE[others])
    for task, other in ((REACH, WINDOW), (WINDOW, REACH)):
        shown = swapped.prompts[swapped.rows_of(task)]
        assert (shown == bank.prompts[bank.rows_of(other)]).all()


def test_no_task_keeps_its_own_and_none_gets_anothers_twice():
    tasks = METAWORLD_TASKS.names[:7]
    table = swap_prompts(tasks, PromptTables(TABLE)).text
    ids = [METAWORLD_TASKS.index(name) for name in tasks]
    shown = table[ids].squeeze(-1).tolist()
    assert sorted(shown) == sorted(ids)
    assert all(given != own for given, own in zip(shown, ids, strict=True))


def test_shuffling_keeps_the_steps_and_the_padding(bank):
    bank.prompts["mask"][:, 12:] = False
    shuffled = shuffle_steps(bank)
    assert torch.equal(shuffled.prompts["mask"], bank.prompts["mask"])
    before, after = (b.prompts["observation"][:, :12] for b in (bank, shuffled))
    assert not torch.equal(before, after)
    torch.testing.assert_close(before.sort(dim=1).values, after.sort(dim=1).values)
    assert torch.equal(shuffle_steps(bank).prompts["action"], shuffled.prompts["action"])


def test_what_was_recorded_is_shuffled_by_its_own_mask(bank):
    entries = bank.prompts.clone(recurse=False)
    for name in ("observation", "action", "mask"):
        entries[f"recorded_{name}"] = entries[name].clone()
    entries["recorded_mask"][:, 9:] = False
    recorded = TrajectoryPromptBank(entries, bank.task_id, bank.trajectory_id)
    shuffled = shuffle_steps(recorded).recorded().prompts
    assert torch.equal(shuffled["mask"], entries["recorded_mask"])
    before, after = entries["recorded_action"][:, :9], shuffled["action"][:, :9]
    assert not torch.equal(before, after)
    torch.testing.assert_close(before.sort(dim=1).values, after.sort(dim=1).values)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=f"use one of {', '.join(CONTROLS)}"):
        apply_control("nothing", TASKS, PromptTables(TABLE))
    with pytest.raises(ConfigError, match="at least two tasks"):
        apply_control("wrong", TASKS[:1], PromptTables(TABLE))


@pytest.mark.parametrize(
    ("control", "demonstrations", "config", "words"),
    [
        ("text", 1, {}, "hides the trajectory prompt"),
        ("random_text", 1, {"text_dropout": 0.1}, "hides the trajectory prompt"),
        ("trajectory", 1, {"trajectory_dropout": 0.1}, "hides the text prompt"),
        ("both", 2, {"conditioning": "pooled"}, "retrieves from none"),
        ("both", 2, {"prompt": "text"}, "retrieves from none"),
    ],
)
def test_what_can_not_be_shown_is_said_early(control, demonstrations, config, words):
    with pytest.raises(ConfigError, match=words):
        check_control(control, demonstrations, NetworkConfig(**config), TASKS)


def test_what_can_be_shown_passes():
    bare = NetworkConfig(text_dropout=0.1, trajectory_dropout=0.1)
    for control in CONTROLS:
        tasks = ["drawer-open-v3", "drawer-close-v3"] if control == "swapped" else TASKS
        check_control(control, 1, bare, tasks)
    check_control("none", 1, NetworkConfig(prompt="none"), TASKS)
    check_control("both", 3, NetworkConfig(), TASKS)
    with pytest.raises(ConfigError, match="at least two tasks"):
        check_control("wrong", 1, NetworkConfig(), TASKS[:1])
    with pytest.raises(ConfigError, match="swapped prompts of reach-v3 are its scene's"):
        check_control("swapped", 1, NetworkConfig(), TASKS)


def test_concatenated_demonstrations_are_not_shuffled(bank):
    with pytest.raises(ConfigError, match="shuffle, then concatenate"):
        shuffle_steps(bank.concatenated())
    assert shuffle_steps(bank).concatenated().prompts["mask"].any()


def test_confusion_shows_every_task_every_tasks_prompts(dataset, backend):
    """Retrieve-and-play opens a window by the window's demonstration only."""
    policy = retrieve_and_play_policy()
    tables = PromptTables(trajectories=TrajectoryPromptBank.from_dataset(dataset, 128))
    tasks = ("window-open-v3", "reach-v3")
    settings = EvaluationSettings(episodes_per_task=2, max_steps=150)
    with Evaluator(tasks, settings, backend=backend, progress=False) as evaluator:
        rates = confusion(evaluator, policy, tables)
    assert rates["window-open-v3"]["window-open-v3"] == 1.0
    assert rates["window-open-v3"]["reach-v3"] == 0.0
    assert set(rates["reach-v3"]) == set(tasks)
    with pytest.raises(ConfigError, match="at least two tasks"):
        confusion(Evaluator(tasks[:1], settings), policy, tables)


def test_swapped_prompts_stay_in_the_scene():
    names = ["drawer-open-v3", "drawer-close-v3", "coffee-pull-v3", "coffee-push-v3"]
    ids = [METAWORLD_TASKS.index(name) for name in names]
    text = torch.arange(50.0).unsqueeze(-1)
    swapped = apply_control("swapped", names, PromptTables(text)).text
    assert swapped[ids].squeeze(-1).tolist() == [ids[1], ids[0], ids[3], ids[2]]
    others = [i for i in range(50) if i not in ids]
    assert torch.equal(swapped[others], text[others])
    with pytest.raises(ConfigError, match="evaluate window-open-v3 too"):
        apply_control("swapped", [*names, "window-close-v3"], PromptTables(text))
    with pytest.raises(ConfigError, match="reach-wall-v3 shares its scene with no other"):
        apply_control("swapped", ["reach-wall-v3"], PromptTables(text))
