"""A long training needs no more memory and no more disk at its end than after its beginning."""

import pytest

from tests.reliability.endurance import STATM, endure

pytestmark = pytest.mark.integration

LONG = 20_000


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("updates", [400, pytest.param(LONG, marks=pytest.mark.slow)])
def test_memory_and_files_stay_as_they_are(tmp_path, updates):
    found = endure(tmp_path, updates)
    if updates == LONG:  # in a short one, what Python's allocator does would drown a leak
        assert found.memory_slope * LONG < 4 * 2**20, f"{found.memory_slope:.0f} bytes an update"
    # A row of numbers for each interval of the log, and nothing that grows in between.
    assert found.rows == updates // 100
    assert found.metrics_bytes < 400
    assert found.kept == 1
    assert found.checkpoints == (2 if updates == LONG else 1)
