"""Every wrong input ends in one line that says what is wrong."""

import pytest

from tests.reliability import bad_inputs, entries

pytestmark = pytest.mark.integration


def label(case):
    return f"{case.entry}: {str(case.given)[:60]}"


def test_there_are_enough():
    assert len(bad_inputs.CASES) >= 150
    assert {case.entry for case in bad_inputs.CASES} == set(entries.ENTRIES)


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=label)
def test_one_clear_line(case):
    outcome = entries.call(case.entry, case.given)
    assert outcome.says(case.says), f"exit code {outcome.code}\n{outcome.text}"
