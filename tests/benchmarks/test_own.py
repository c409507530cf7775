"""Wrong inputs of people with their own tasks: one clear line each."""

import pytest

from benchmarks.own import clear_mistakes
from benchmarks.own_mistakes import MISTAKES


@pytest.mark.integration
def test_every_wrong_input_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    rows = clear_mistakes()
    assert len(rows) == len(MISTAKES)
    assert [row for row in rows if not row["is_clear"]] == []
