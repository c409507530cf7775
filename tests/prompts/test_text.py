"""The built-in prompts, and the reader that names file and line of a mistake."""

from __future__ import annotations

import re
from itertools import combinations
from textwrap import dedent

import pytest

from llmdpd_torchrl.commands.prompts import builtin_prompts
from llmdpd_torchrl.prompts import (
    TextPrompt,
    load_text_prompts,
    velocity_prompt,
    velocity_task,
)
from llmdpd_torchrl.utils.errors import PromptError

GOOD = """\
defaults:
  robot: An arm.
tasks:
  lift:
    task: Lift it.
    objective: It is up.
    constraints: Gently.
    success: It is 5 cm up.
    paraphrases:
      - Raise the thing.
  drop:
    task: Drop it.
    robot: Another arm.
    objective: It is down.
    constraints: Let go.
    success: It lies
      on the floor.
"""

# (what is replaced in GOOD, by what, the line that must be named, words of the message)
MISTAKES = {
    "unknown field": ("    success: It is", "    sucess: It is", 8, "unknown key 'sucess'"),
    "missing field": ("    constraints: Gently.\n", "", 5, "'lift' lacks constraints"),
    "duplicate field": (
        "    constraints: Gently.",
        "    task: Gently.",
        7,
        "twice (first on line 5)",
    ),
    "duplicate task": ("  drop:", "  lift:", 11, "'lift' twice (first on line 4)"),
    "number for a text": ("Lift it.", "5", 5, "must be a text, not int"),
    "list for a text": ("Lift it.", "[Lift, it]", 5, "must be a text, not seq"),
    "null for a text": ("Lift it.", "", 5, "must be a text, not null"),
    "empty text": ("Lift it.", "'  '", 5, "is empty"),
    "empty paraphrase": ("Raise the thing.", "''", 10, "paraphrases[0] is empty"),
    "paraphrases not a list": ("\n      - Raise the thing.", " Raise it.", 9, "list of texts"),
    "task not a mapping": ("  drop:\n", "  stop: 1\n  drop:\n", 11, "must be a mapping"),
    "unknown key at the top": ("defaults:", "default:", 1, "unknown key 'default'"),
    "unknown default": ("  robot: An", "  name: An", 2, "unknown key 'name'"),
    "bad YAML": ("Lift it.", "'Lift it.", 5, "not valid YAML"),
    "a tab": ("    task: Lift", "\ttask: Lift", 5, "not valid YAML"),
    "an object tag": ("Lift it.", "!!python/name:os.system x", 5, "must be a text"),
}


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_reads_a_file_with_defaults_and_folded_lines(tmp_path):
    prompts = load_text_prompts(write(tmp_path, GOOD))
    assert list(prompts) == ["lift", "drop"]
    assert prompts["lift"] == TextPrompt(
        "lift",
        "Lift it.",
        "An arm.",
        "It is up.",
        "Gently.",
        "It is 5 cm up.",
        ("Raise the thing.",),
    )
    assert prompts["drop"].robot == "Another arm."
    assert prompts["drop"].success == "It lies on the floor."
    assert prompts["drop"].paraphrases == ()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_and_line(tmp_path, mistake):
    old, new, line, words = MISTAKES[mistake]
    assert GOOD.count(old) >= 1
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(PromptError) as caught:
        load_text_prompts(path)
    message = str(caught.value)
    assert f"{path}, line " in message
    named = int(re.search(r", line (\d+)", message)[1])
    # The YAML scanner sees an open quote only where the text that it swallows ends.
    assert named >= line if mistake == "bad YAML" else named == line
    assert words in message
    assert "\n" not in message


def test_an_empty_file_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(PromptError, match="line 1: the file is empty"):
        load_text_prompts(write(tmp_path, "# nothing\n"))
    with pytest.raises(PromptError, match="line 2: the key 'tasks' is missing"):
        load_text_prompts(write(tmp_path, "# mine\ndefaults: {robot: An arm.}\n"))
    with pytest.raises(PromptError, match=r"absent\.yaml"):
        load_text_prompts(tmp_path / "absent.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"tasks: \xff\xfe")
    with pytest.raises(PromptError, match=r"binary\.yaml"):
        load_text_prompts(path)
    path.write_bytes(b"tasks: \x00")
    with pytest.raises(PromptError, match=r"binary\.yaml.*not valid YAML"):
        load_text_prompts(path)


def test_render_labels_every_part():
    prompt = TextPrompt("x", "A.", "B.", "C.", "D.", "E.")
    assert prompt.render() == dedent("""\
        Task: A.
        Robot: B.
        Objective: C.
        Constraints: D.
        Success: E.""")


def test_variant_chooses_a_paraphrase_or_says_that_there_is_none():
    prompt = TextPrompt("x", "A.", "B.", "C.", "D.", "E.", ("P.", "Q."))
    assert prompt.variant(None) == prompt.render()
    assert prompt.variant(1) == "Q."
    for wrong in (-1, 2):
        with pytest.raises(PromptError, match=f"variant {wrong} does not exist"):
            prompt.variant(wrong)


def test_builtin_prompts_cover_metaworld():
    names = pytest.importorskip("metaworld.env_dict").ENV_CLS_MAP
    prompts = load_text_prompts()
    assert set(prompts) == set(names)
    assert len(prompts) == 50
    assert all(len(prompt.paraphrases) >= 3 for prompt in prompts.values())


def test_locomotion_prompts_cover_d4rls_levels():
    levels = ("random", "medium", "medium-replay", "medium-expert", "expert")
    expected = {f"{body}-{level}" for body in ("halfcheetah", "hopper", "walker2d")
                for level in levels}  # fmt: skip
    prompts = load_text_prompts("gym_mujoco")
    assert set(prompts) == expected
    assert all(len(prompt.paraphrases) >= 3 for prompt in prompts.values())


def test_builtin_texts_all_differ():
    texts = [text for p in builtin_prompts() for text in (p.render(), *p.paraphrases)]
    assert len(set(texts)) == len(texts)
    prompts = load_text_prompts()
    # A name differs anyhow; so must what is to be reached, or the task is not told apart.
    for a, b in combinations(prompts.values(), 2):
        assert (a.task, a.objective) != (b.task, b.objective)
        assert a.task != b.task


def test_paraphrases_use_other_words():
    common = set(
        re.findall(
            r"\w+",
            "a an the of to in on it its is and with as by that at from up so for out into until "
            "like off over not",
        )
    )
    for prompt in (*load_text_prompts().values(), *load_text_prompts("gym_mujoco").values()):
        own = set(re.findall(r"[a-z]+", prompt.render().lower())) - common
        for paraphrase in prompt.paraphrases:
            words = set(re.findall(r"[a-z]+", paraphrase.lower())) - common
            assert len(words & own) <= 2, (prompt.name, words & own)


@pytest.mark.parametrize(
    ("speed", "digits", "words"),
    [
        (0.25, "0.25", "zero point two five"),
        (1.0, "1", "one"),
        (12.5, "12.5", "one two point five"),
    ],
)
def test_a_speed_stands_in_digits_and_in_words(speed, digits, words):
    prompt = velocity_prompt(speed)
    assert f" {digits} metres per second, {words}, " in prompt.objective
    assert prompt.name == velocity_task(speed) == f"halfcheetah-vel-{digits}"
    assert len(prompt.paraphrases) >= 3


def test_every_speed_has_texts_of_its_own():
    prompts = [velocity_prompt(number / 4) for number in range(1, 25)]
    texts = {text for p in prompts for text in (p.render(), *p.paraphrases)}
    assert len(texts) == sum(1 + len(p.paraphrases) for p in prompts)


@pytest.mark.parametrize("speed", [-1.0, 101.0, float("nan")])
def test_an_impossible_speed_is_refused(speed):
    with pytest.raises(PromptError, match="metres per second from 0 to 100"):
        velocity_prompt(speed)


def test_each_task_of_meta_world_has_wordings_of_its_own():
    wordings = [prompt.wordings for prompt in load_text_prompts().values()]
    assert all(len(set(some)) == 24 for some in wordings)
    assert len({text for some in wordings for text in some}) == 24 * 50
    free = {text for prompt in load_text_prompts().values() for text in prompt.paraphrases}
    assert not free & {text for some in wordings for text in some}


def test_a_file_may_have_wordings(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "tasks:\n  lift:\n    task: Lift.\n    robot: An arm.\n    objective: Up.\n"
        "    constraints: Gently.\n    success: Up.\n    wordings: [Raise it., lift the cup]\n"
    )
    assert load_text_prompts(path)["lift"].wordings == ("Raise it.", "lift the cup")
