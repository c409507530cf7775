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
LLMDPD = "llmdpd_torchrl/objectives/llmdpd.py"
BASE = "llmdpd_torchrl/objectives/base.py"
UPDATER = "llmdpd_torchrl/trainers/target_updater.py"
WHOLE = "tests/objectives/test_llmdpd.py::"
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
        "tests/trainers/test_target_updater.py::test_direction",
    ),
    Mutation(
        "target with gradient",
        LLMDPD,
        "        with torch.no_grad():\n            next_value",
        "        with torch.enable_grad():\n            next_value",
        GRADIENTS + "test_the_prompts_gradient_takes_the_stated_routes",
    ),
    Mutation(
        "guidance trains the critics",
        BASE,
        "return self.qvalue_network_params.data",
        "return self.qvalue_network_params",
        GRADIENTS + "test_each_term_trains_its_own_networks",
    ),
    Mutation(
        "guidance reaches the encoder through the critics",
        LLMDPD,
        "value = self._values(params[order[:1]], data, action, attached=False)",
        "value = self._values(params[order[:1]], data, action, attached=True)",
        GRADIENTS + "test_raising_q_never_changes_what_the_critics_are_told",
    ),
    Mutation(
        "normaliser with gradient",
        LLMDPD,
        "other = value.detach()",
        "other = value",
        GRADIENTS + "test_the_normaliser_is_a_constant_to_the_gradient",
    ),
    Mutation(
        "terminated forgotten",
        LLMDPD,
        "value_estimate(data)",
        "value_estimate(data.set(('next', 'terminated'), torch.zeros_like(data['next', 'done'])))",
        WHOLE + "test_truncated_rows_bootstrap_and_terminated_ones_do_not",
    ),
    Mutation(
        "done in the place of terminated",
        BASE,
        '"terminated": self.tensor_keys.terminated',
        '"terminated": self.tensor_keys.done',
        WHOLE + "test_truncated_rows_bootstrap_and_terminated_ones_do_not",
    ),
    Mutation(
        "lambda's sign",
        LLMDPD,
        "bc - self.lmbda * guidance",
        "bc + self.lmbda * guidance",
        WHOLE + "test_the_parts_make_the_whole_to_the_last_digit",
    ),
    Mutation(
        "L_d twice",
        LLMDPD,
        "loss = bc - self.lmbda",
        "loss = 2 * bc - self.lmbda",
        WHOLE + "test_the_parts_make_the_whole_to_the_last_digit",
    ),
    Mutation(
        "L_d summed by the trainer again",
        LLMDPD,
        '"bc": bc.detach(),\n            "guidance"',
        '"loss_bc": bc.detach(),\n            "guidance"',
        WHOLE + "test_a_trainer_that_sums_what_starts_with_loss_sums_two_terms",
    ),
    Mutation(
        "target actions from one latent",
        LLMDPD,
        "sample(condition, num_steps",
        "sample(condition, deterministic=True, num_steps",
        WHOLE + "test_rows_with_equal_observations_get_different_next_actions",
    ),
    Mutation(
        "guided actions from one latent",
        LLMDPD,
        "self._process.sample(condition)",
        "self._process.sample(condition, deterministic=True)",
        MATH + "test_every_term_equals_its_second_derivation",
    ),
    Mutation(
        "deterministic exploration",
        BASE,
        "= ExplorationType.RANDOM",
        "= ExplorationType.DETERMINISTIC",
        WHOLE + "test_terms_sample_at_random_whatever_the_caller_set",
    ),
    Mutation(
        "maximum of the target critics",
        LLMDPD,
        "return values.amin(0)",
        "return values.amax(0)",
        MATH + "test_every_term_equals_its_second_derivation",
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
    if source.count(mutation.old) != 1:
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
