"""Plots: what is drawn, checked on the figure itself, and files that are images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from llmdpd_torchrl.evaluation import plots
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, summarise
from llmdpd_torchrl.trainers.metrics_file import MetricsFile
from llmdpd_torchrl.utils.errors import DataError


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures as they are saved."""
    figures: list[Figure] = []
    save = plots.save_figure

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


def make_summary(seen: int, unseen: int):
    names = [f"task-{index:02d}-with-a-long-name-v3" for index in range(seen + unseen)]
    episodes = [
        EpisodeResult(name, goal, goal < index, True, 1.0, 100)
        for index, name in enumerate(names)
        for goal in range(10)
    ]
    return summarise(episodes, names[:seen], names[seen:])


@pytest.mark.parametrize(("seen", "unseen"), [(10, 5), (0, 2), (1, 0), (45, 5)])
def test_success_bars(tmp_path, drawn, seen, unseen):
    summary = make_summary(seen, unseen)
    plots.plot_success_bars(summary, tmp_path / "bars.png", title="A title " * 20)
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [100 * task.success_rate for task in summary.tasks]
    )
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [t.task for t in summary.tasks]
    headings = [text.get_text() for text in axes.texts]
    assert len(headings) == (summary.seen is not None) + (summary.unseen is not None)
    means = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    groups = [group for group in (summary.seen, summary.unseen) if group]
    assert means == pytest.approx([100 * group.success_rate for group in groups])
    assert "n = 10 episodes" in drawn[0].get_supxlabel()
    with Image.open(tmp_path / "bars.png") as image:
        assert image.width > 1000


def test_whiskers_are_the_wilson_limits(tmp_path, drawn):
    summary = make_summary(3, 0)
    plots.plot_success_bars(summary, tmp_path / "bars.png")
    segments = drawn[0].axes[0].collections[0].get_segments()
    for task, segment in zip(summary.tasks, segments, strict=True):
        assert segment[:, 0] == pytest.approx([100 * task.low, 100 * task.high], abs=1e-9)


def test_nothing_is_cut_off_or_overlaps(tmp_path, drawn):
    plots.plot_success_bars(make_summary(6, 5), tmp_path / "bars.png", title="A title " * 20)
    figure = drawn[0]
    axes = figure.axes[0]
    texts = [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, *figure.texts]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_learning_curves_draw_every_metric_and_say_that_they_are_smoothed(tmp_path, drawn):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in range(300):
        row = {"loss_q": float(np.sin(step)), "q_mean": step / 10, "empty": float("nan")}
        if step % 100 == 0:
            row["success/unseen"] = step / 300
        metrics.write(10 * step, row)
    plots.plot_learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    figure = drawn[0]
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["success/unseen", "loss_q", "q_mean"]
    success = panels["success/unseen"].lines
    assert len(success) == 1  # three points: not smoothed
    assert success[0].get_xdata().tolist() == [0, 1000, 2000]
    logged, smooth = panels["loss_q"].lines
    assert np.std(smooth.get_ydata()) < np.std(logged.get_ydata())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["logged", "moving average over 2 % of the points"]
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000


def test_moving_average_keeps_a_constant_to_its_ends():
    assert plots._moving_average(np.full(9, 2.0), 4) == pytest.approx(np.full(9, 2.0))
    assert plots._moving_average(np.arange(5.0), 3) == pytest.approx([0.5, 1, 2, 3, 3.5])


def test_no_curve_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        plots.plot_learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    MetricsFile(tmp_path / "metrics.csv")
    with pytest.raises(DataError, match=r"metrics\.csv has no values"):
        plots.plot_learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_pyplot_knows_nothing_of_it(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    plots.plot_success_bars(make_summary(2, 1), tmp_path / "bars.png")
    assert pyplot.get_fignums() == before


def test_maps_of_little(tmp_path):
    plots.plot_prompt_map(torch.randn(1, 4), ["reach-v3"], [True], tmp_path / "map.png")
    plots.plot_prompt_map(
        torch.zeros(3, 1), ["a", "b", "c"], [True, False, False], tmp_path / "b.png"
    )
    plots.plot_confusion(
        {"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.5, "b": 1.0}}, tmp_path / "c.png", 3
    )
    assert len(list(tmp_path.iterdir())) == 3
