"""A long training needs no more memory and no more disk at its end than after its beginning."""

import os
from pathlib import Path

import numpy as np
import pytest
from short_training import build

from llmdpd_torchrl.trainers.metrics_file import read_metrics


def resident_bytes():
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_and_files_stay_as_they_are(tmp_path):
    trainer, _ = build(tmp_path, updates=20_000, log_every=100, every=1000)
    seen = []
    trainer.register_op(
        "post_steps",
        lambda: seen.append((trainer.collected_frames, resident_bytes())),
    )
    trainer.train()
    updates, used = np.array([row for row in seen if row[0] > 5000], dtype=np.float64).T
    slope = np.polyfit(updates, used, 1)[0]
    assert slope * 20_000 < 4 * 2**20, f"{slope:.0f} bytes an update"
    assert len(read_metrics(tmp_path / "metrics.csv")[0]) == 200
    # What TorchRL's trainer remembers of its log, and what the guard does between two looks.
    assert max(len(values) for values in trainer._log_dict.values()) == 1
    assert not trainer.guard._values
    checkpoints = [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert len(checkpoints) <= 3  # the last two and the best
