"""The table fits a terminal, Markdown is well formed, and results.json comes back as it was."""

from __future__ import annotations

import csv
import io
import json
from importlib import metadata

import numpy as np
import pytest
from rich.console import Console

from llmdpd_torchrl.evaluation.results import (
    Table,
    acting_table,
    find_runs,
    print_table,
    read_results_json,
    variants,
    write_markdown,
    write_results_json,
)
from llmdpd_torchrl.evaluation.statistics import EpisodeResult, ResultsSummary, summarise
from llmdpd_torchrl.utils.errors import DataError

LONG = "button-press-topdown-wall-v3"  # Meta-World's longest name


@pytest.fixture
def summary() -> ResultsSummary:
    episodes = [EpisodeResult(LONG, i, i < 20, i < 20, 1.0, 500) for i in range(20)]
    episodes += [EpisodeResult("bin-picking-v3", i, i < 5, i < 5, 1.0, 80) for i in range(10)]
    episodes += [EpisodeResult("bin-picking-v3", 10, False, False, 0.0, 3, error="boom")]
    return summarise(episodes, [LONG], ["bin-picking-v3"])


def test_table_fits_80_columns_and_says_all(summary):
    output = io.StringIO()
    print_table(summary, Console(file=output, width=80))
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    row = next(line for line in text.splitlines() if LONG in line)
    assert row.split() == [LONG, "100.0", "20", "83.9", "-", "100.0", "500"]
    row = next(line for line in text.splitlines() if "bin-picking-v3" in line)
    assert row.split() == ["bin-picking-v3", "45.5", "11", "21.3", "-", "72.0", "80"]
    assert text.index("seen tasks") < text.index(LONG) < text.index("unseen tasks")
    assert text.count("mean of 1 task") == 2
    assert "1 episode crashed and counts as not solved" in text


def test_table_without_unseen_tasks_has_no_such_heading():
    output = io.StringIO()
    episodes = [EpisodeResult("a", 0, True, True, 1.0, 5)]
    print_table(summarise(episodes, ["a"], []), Console(file=output, width=80))
    assert "unseen" not in output.getvalue()
    assert "crashed" not in output.getvalue()


def test_markdown_rows_have_as_many_cells_as_the_head(summary, tmp_path):
    write_markdown(summary, tmp_path / "table.md")
    rows = [
        line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")
    ]
    assert {row.count("|") for row in rows} == {7}
    assert "| bin-picking-v3 | 45.5 | 11 | 21.3 - 72.0 | 80 | - |" in rows
    assert "| **mean of 1 task** | 45.5 | 11 | 21.3 - 72.0 |  |  |" in rows


def test_results_come_back(summary, tmp_path):
    write_results_json(tmp_path / "results.json", summary, {"seed": 3, "episodes_per_task": 20})
    again, extra = read_results_json(tmp_path / "results.json")
    assert again == summary
    assert extra["seed"] == 3
    assert extra["versions"]["torchrl"] == metadata.version("torchrl")
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw["summary"]["tasks"][0]["success_rate"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[]", 'no "summary"'),
        ('{"summary": {}}', "tasks is wrong"),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_results_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# --- runs of a folder -----------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_variant(make_run, tmp_path):
    make_run("ours", 1)
    make_run("ours", 0, succeeds=lambda task, goal: task == "reach-v3")
    make_run("theirs", 0)
    make_run("ours", 7, control="wrong")
    found = variants(find_runs(tmp_path))
    assert {v.name: [run.seed for run in v.runs] for v in found} == {
        "ours": [0, 1],
        "ours wrong": [7],
        "theirs": [0],
    }
    ours = found[0]
    assert ours.scores("unseen")["door-lock-v3"].tolist() == [[0, 0, 0, 0], [1, 0, 1, 0]]
    assert ours.summary.seen.success_rate == pytest.approx((6 / 8 + 2 / 8) / 2)
    # Rates of the two runs' three tasks: 1, 0, 0 and three halves.
    assert ours.profile([0.0, 0.25, 0.75]).tolist() == pytest.approx([4 / 6, 4 / 6, 1 / 6])


def test_runs_of_a_variant_are_of_the_same_goals(make_run, tmp_path):
    make_run("a", 0, starts={"reach-v3": [[1.0]]})
    make_run("a", 1, starts={"reach-v3": [[2.0]]})
    with pytest.raises(DataError, match="of other tasks, goals or evaluation settings"):
        variants(find_runs(tmp_path))


def test_tables_as_files():
    table = Table(("name", "success, %"), [("a_b & c", "50 (1 - 99)"), ("d", "#1")])
    assert table.markdown().splitlines()[1] == "|---|---:|"
    assert list(csv.reader(io.StringIO(table.csv()))) == [list(table.head), *map(list, table.rows)]
    latex = table.latex()
    assert r"name & success, \% \\" in latex
    assert r"a\_b \& c & 50 (1 - 99) \\" in latex
    assert r"d & \#1 \\" in latex
    assert latex.count(r"\\") == 3


def test_mistakes_are_named(make_run, tmp_path):
    with pytest.raises(DataError, match=r"no results\.json"):
        find_runs(tmp_path)
    folder = make_run("a")
    again = tmp_path / "outputs" / "copy"
    again.mkdir()
    (again / "results.json").write_text((folder / "results.json").read_text())
    with pytest.raises(DataError, match="are both 'a' of seed 0"):
        variants(find_runs(tmp_path))
    (again / "results.json").write_text('{"summary": {"tasks": [], "seen": null, "unseen": null}}')
    with pytest.raises(DataError, match=r"name is wrong \(field required\)"):
        find_runs(tmp_path)


def test_profiles_fall(make_run, tmp_path):
    make_run("a")
    profile = variants(find_runs(tmp_path))[0].profile(np.linspace(0, 1, 11))
    assert (np.diff(profile) <= 0).all()


def test_ways_to_act_are_compared_on_the_same_episodes():
    def episodes(*rates):
        return [
            EpisodeResult(task, goal, goal < 10 * rate, False, 1.0, 9)
            for task, rate in zip((LONG, "bin-picking-v3"), rates, strict=True)
            for goal in range(10)
        ]

    groups = {"seen": [LONG], "unseen": ["bin-picking-v3"], "other": []}
    table = acting_table(episodes(1.0, 0.8), {"sampled": episodes(1.0, 0.3)}, groups)
    assert table.head == (
        "acting", "tasks", "own success %", "success %", "own minus it (95 % interval)"
    )  # fmt: skip
    (seen, unseen) = table.rows
    assert seen == ("sampled", "seen", "100.0", "100.0", "0 (0 - 0)")
    assert unseen[:4] == ("sampled", "unseen", "80.0", "30.0")
    assert unseen[4].startswith("50 (")
