"""Mistakes that are easily made in this method, and the test that catches each.

``python tests/mutations.py`` copies package and tests to a temporary folder, makes one mistake at a
time there, and runs the named test on it, which must fail. The tests must pass on the copy first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LOSS = "llmdpd_torchrl/objectives/llmdpd.py"
GUIDANCE = "llmdpd_torchrl/objectives/guidance.py"
UPDATER = "llmdpd_torchrl/trainers/optimization.py"
TERMS = "tests/objectives/test_llmdpd.py::"
INPUTS = "tests/objectives/test_inputs.py::"
MATH = "tests/objectives/test_llmdpd_math.py::"
GRADIENTS = "tests/objectives/test_gradients.py::"


class Mutation(NamedTuple):
    """One mistake: ``old`` becomes ``new`` in ``file``, and ``test`` has to notice."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "tau inverted",
        UPDATER,
        "lerp_(targets, sources, tau)",
        "lerp_(targets, sources, 1 - tau)",
        "tests/trainers/test_optimization.py::test_direction",
    ),
    Mutation(
        "target with gradient",
        LOSS,
        "with torch.no_grad():\n            after",
        "with torch.enable_grad():\n            after",
        GRADIENTS + "test_the_target_is_a_constant_to_the_prompts_gradient",
    ),
    Mutation(
        "guidance trains the critics",
        LOSS,
        "critics = self.qvalue_network_params.data",
        "critics = self.qvalue_network_params",
        GRADIENTS + "test_each_term_trains_its_own_networks",
    ),
    Mutation(
        "guidance reaches the prompt network through the critics",
        LOSS,
        "value = self._values(critics[order[:1]], fixed, action)",
        "value = self._values(critics[order[:1]], data, action)",
        GRADIENTS + "test_guidance_never_trains_the_prompt_through_the_critics",
    ),
    Mutation(
        "guidance reaches the prompt network through the chain",
        LOSS,
        "functools.partial(self._condition, fixed)",
        "functools.partial(self._condition, data)",
        GRADIENTS + "test_the_prompts_gradient_takes_the_stated_routes",
    ),
    Mutation(
        "normaliser with gradient",
        LOSS,
        "with torch.no_grad():\n                other",
        "with torch.enable_grad():\n                other",
        GRADIENTS + "test_the_normaliser_is_a_constant_to_the_gradient",
    ),
    Mutation(
        "terminated forgotten",
        LOSS,
        "value_estimate(data)",
        "value_estimate(data.set(('next', 'terminated'), torch.zeros_like(data['next', 'done'])))",
        TERMS + "test_truncated_rows_bootstrap_and_terminated_ones_do_not",
    ),
    Mutation(
        "done in the place of terminated",
        LOSS,
        'terminated: NestedKey = "terminated"',
        'terminated: NestedKey = "done"',
        TERMS + "test_truncated_rows_bootstrap_and_terminated_ones_do_not",
    ),
    Mutation(
        "lambda's sign",
        LOSS,
        "loss - self.lmbda * guidance",
        "loss + self.lmbda * guidance",
        TERMS + "test_the_parts_add_up_to_the_last_digit",
    ),
    Mutation(
        "L_d twice",
        LOSS,
        "loss = bc = self._reduce(error, data)",
        "loss = 2 * (bc := self._reduce(error, data))",
        TERMS + "test_the_parts_add_up_to_the_last_digit",
    ),
    Mutation(
        "L_d summed by the trainer again",
        LOSS,
        '{"bc": bc, "guidance"',
        '{"loss_bc": bc, "guidance"',
        TERMS + "test_a_trainer_that_sums_what_starts_with_loss_sums_two_terms",
    ),
    Mutation(
        "target actions from one latent",
        GUIDANCE,
        "sample(condition, num_steps",
        "sample(condition, deterministic=True, num_steps",
        TERMS + "test_rows_with_equal_observations_get_different_next_actions",
    ),
    Mutation(
        "guided actions from one latent",
        GUIDANCE,
        "sample(condition())",
        "sample(condition(), deterministic=True)",
        MATH + "test_every_term_equals_its_second_derivation",
    ),
    Mutation(
        "deterministic exploration",
        LOSS,
        "= ExplorationType.RANDOM",
        "= ExplorationType.DETERMINISTIC",
        TERMS + "test_terms_sample_at_random_whatever_the_caller_set",
    ),
    Mutation(
        "maximum of the target critics",
        LOSS,
        "values.amin(0)",
        "values.amax(0)",
        MATH + "test_every_term_equals_its_second_derivation",
    ),
    Mutation(
        "one critic normalises itself",
        LOSS,
        "critics[order[1:2]]",
        "critics[order[:1]]",
        MATH + "test_every_term_equals_its_second_derivation",
    ),
    Mutation(
        "the present state in the place of the next",
        LOSS,
        "after = step_mdp(data.select(*self._state_keys))",
        "after = data.copy()",
        MATH + "test_every_term_equals_its_second_derivation",
    ),
    Mutation(
        "flags as numbers",
        "llmdpd_torchrl/objectives/cloning.py",
        "torch.bool if key in self._flag_keys else dtype",
        "value.dtype if key in self._flag_keys else dtype",
        INPUTS + "test_flags_of_any_type_mean_the_same",
    ),
)


def copy_to(folder: Path) -> None:
    """Copy what the tests need."""
    for name in ("llmdpd_torchrl", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests on the copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "500"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )


def survives(folder: Path, mutation: Mutation) -> bool:
    """Whether the mistake goes unnoticed; the copy is as before afterwards."""
    path = folder / mutation.file
    source = path.read_text()
    if source.count(mutation.old) != 1:  # else nothing, or more than one thing, would be tested
        raise ValueError(f"{mutation.name}: {mutation.file} must hold {mutation.old!r} once")
    path.write_text(source.replace(mutation.old, mutation.new))
    result = run(folder, mutation.test)
    path.write_text(source)
    # A test that crashed says nothing about whether it would have noticed.
    if result.returncode and not re.search(r"^FAILED .* - (assert|Assertion)", result.stdout, re.M):
        raise RuntimeError(f"{mutation.name}:\n{result.stdout}{result.stderr}")
    return result.returncode == 0


def main() -> int:
    """Try all mistakes; the number that no test noticed is the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        result = run(folder, *sorted({mutation.test for mutation in MUTATIONS}))
        if result.returncode:
            raise RuntimeError("the tests fail without a mistake:\n" + result.stdout)
        unnoticed = 0
        for mutation in MUTATIONS:
            lives = survives(folder, mutation)
            unnoticed += lives
            verdict = "NOT NOTICED" if lives else "caught"
            print(f"{verdict:12}{mutation.name}: {mutation.test}", flush=True)
    return unnoticed


if __name__ == "__main__":
    sys.exit(main())
