from __future__ import annotations

import pytest

from llmdpd_torchrl.prompts import velocity_prompt, velocity_task
from llmdpd_torchrl.utils.errors import PromptError


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
