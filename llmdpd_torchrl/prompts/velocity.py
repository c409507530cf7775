"""Text prompts of the velocity tasks: run at a given speed, in digits and in words."""

from __future__ import annotations

from llmdpd_torchrl.prompts.text import TextPrompt
from llmdpd_torchrl.utils.errors import PromptError

__all__ = ["velocity_prompt", "velocity_task"]

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MAX_SPEED = 100.0


def velocity_task(speed: float) -> str:
    """The name of the task of running at ``speed``, in metres per second.

    Examples:
        >>> velocity_task(1.5)
        'halfcheetah-vel-1.5'
    """
    return f"halfcheetah-vel-{_digits(speed)}"


def velocity_prompt(speed: float) -> TextPrompt:
    """The prompt of a half cheetah that is to run at ``speed``.

    A language model splits numbers into pieces that say little of their size, so the speed is
    written out too, and its place among slow and fast gaits is named.

    Args:
        speed: target velocity, metres per second, to two decimals; 0 to 100.

    Raises:
        PromptError: if the speed is not a number in that range.

    Examples:
        >>> velocity_prompt(2.25).objective
        'The body moves to the right at 2.25 metres per second, two point two five, a brisk pace.'
    """
    digits = _digits(speed)
    words = _words(digits)
    pace = _pace(speed)
    return TextPrompt(
        name=velocity_task(speed),
        task=f"Run forward at a speed of {digits} metres per second.",
        robot="A flat two-legged cheetah with six driven joints.",
        objective=f"The body moves to the right at {digits} metres per second, {words}, {pace}.",
        constraints="Neither slower nor faster; keep the torques small.",
        success=f"The velocity stays within a tenth of {digits} metres per second.",
        paraphrases=(
            f"The planar feline keeps moving at exactly {words} m/s.",
            f"Hold the runner's pace at {digits} m per s, {pace}.",
            f"Every second the body gets {words} metres further.",
        ),
    )


def _digits(speed: float) -> str:
    if not 0.0 <= speed <= _MAX_SPEED:
        raise PromptError(f"the speed is {speed}: give metres per second from 0 to 100")
    return f"{speed:.2f}".rstrip("0").rstrip(".")


def _words(digits: str) -> str:
    return " ".join("point" if digit == "." else _DIGITS[int(digit)] for digit in digits)


def _pace(speed: float) -> str:
    for limit, name in ((0.75, "a crawl"), (1.75, "a slow pace"), (3.0, "a brisk pace"),
                        (4.5, "a fast run")):  # fmt: skip
        if speed < limit:
            return name
    return "a sprint"
