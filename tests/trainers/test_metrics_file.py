"""metrics.csv row by row, and its resume."""

from __future__ import annotations

import numpy as np
import pytest

from llmdpd_torchrl.trainers.metrics_file import MetricsFile, read_metrics
from llmdpd_torchrl.utils.errors import ConfigError, DataError


def test_every_write_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.write(10, {"loss": 0.5, "q": 2.0})
    assert path.read_text() == "step,loss,q\n10,0.5,2.0\n"
    metrics.write(20, {"q": 3.0})
    assert path.read_text() == "step,loss,q\n10,0.5,2.0\n20,,3.0\n"


def test_the_same_step_completes_its_row_and_replaces_values(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.write(1, {"a": 123456.789, "b": 1.0})
    metrics.write(2, {"a": 123456.789})
    metrics.write(2, {"b": 2.0})
    metrics.write(2, {"a": 3.0})
    assert path.read_text() == "step,a,b\n1,123456.789,1.0\n2,3.0,2.0\n"


def test_a_new_metric_becomes_a_column_of_all_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.write(1, {"loss": 1.0})
    metrics.write(2, {"loss": 2.0, "success/unseen": 0.5})
    metrics.write(3, {"loss": 3.0})
    assert path.read_text() == "step,loss,success/unseen\n1,1.0,\n2,2.0,0.5\n3,3.0,\n"


def test_an_older_step_finds_its_row(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.write(1, {"loss": 1.0})
    metrics.write(5, {"loss": 5.0})
    metrics.write(1, {"loss": 1.5})
    metrics.write(3, {"loss": 3.0})
    metrics.write(6, {"loss": 6.0})
    assert path.read_text() == "step,loss\n1,1.5\n3,3.0\n5,5.0\n6,6.0\n"


def test_values_come_back_exactly(tmp_path):
    values = [0.1 + 0.2, 1e-300, -np.pi, float("inf"), 2**53]
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step, value in enumerate(values):
        metrics.write(step, {'odd, "name"\nof a metric': value})
    metrics.write(9, {"other": float("nan")})
    steps, columns = read_metrics(tmp_path / "metrics.csv")
    assert steps.tolist() == [0, 1, 2, 3, 4, 9]
    assert columns['odd, "name"\nof a metric'][:5].tolist() == values
    assert np.isnan(columns['odd, "name"\nof a metric'][5])


def test_another_runs_metrics_are_not_touched(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path).write(1, {"loss": 1.0})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"metrics\.csv holds another run's"):
        MetricsFile(path)
    assert path.read_bytes() == before


def test_resume_forgets_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in range(5):
        metrics.write(step, {"loss": float(step)})
    metrics.write(5, {"success": 1.0})
    again = MetricsFile(path, resume_step=2)
    assert again.last_step == 2
    assert path.read_text() == "step,loss\n0,0.0\n1,1.0\n2,2.0\n"
    again.write(3, {"loss": 30.0})
    assert path.read_text().endswith("2,2.0\n3,30.0\n")


def test_resume_without_an_old_file_starts_one(tmp_path):
    assert MetricsFile(tmp_path / "metrics.csv", resume_step=7).last_step == -1


def test_a_line_that_was_cut_off_is_forgotten_on_resume(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,1.0\n2,2.")
    MetricsFile(path, resume_step=10).write(2, {"loss": 2.0})
    assert path.read_text() == "step,loss\n1,1.0\n2,2.0\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no newline", 'not "step"'),
        ("time,loss\n1,2\n", 'not "step"'),
        ("step,loss\n1,2\nx,3\n", "line 3"),
        ("step,loss\n1,2,3\n", "line 2"),
        ("step,loss\n\n1,2\n", "line 2"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_kept(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        MetricsFile(path, resume_step=10)
    assert str(path) in str(error.value)
    assert path.read_text() == content


def test_step_is_no_name_for_a_metric(tmp_path):
    with pytest.raises(ValueError, match="step"):
        MetricsFile(tmp_path / "metrics.csv").write(0, {"step": 1.0})
