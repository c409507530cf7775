import csv
import io
import json

import numpy as np
import pytest

from llmdpd_torchrl.evaluation.runs import Table, compare, find_runs, task_table, variants
from llmdpd_torchrl.utils.errors import DataError


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


def test_the_comparison(make_run, tmp_path):
    make_run("a", 0, succeeds=lambda task, goal: True)
    make_run("a", 1, succeeds=lambda task, goal: True, error="the simulator failed")
    make_run("b", 0, succeeds=lambda task, goal: goal == 0)
    table = compare(variants(find_runs(tmp_path)))
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert rows["a"]["seeds"] == "2"
    assert rows["a"]["failed"] == "1"
    assert rows["a"]["seen %"].startswith("94 (")
    assert rows["a"]["unseen IQM %"] == "100 (100 - 100)"
    assert rows["a"]["unseen, points above the first"] == "-"
    assert rows["b"]["unseen IQM %"] == "-"  # one seed
    assert rows["b"]["unseen, points above the first"].startswith("-75 (-100 - ")
    by_task = task_table(variants(find_runs(tmp_path)))
    assert by_task.head == ("task", "a", "b")
    assert [row[0] for row in by_task.rows] == ["reach-v3", "push-v3", "door-lock-v3 (unseen)"]


def test_other_episodes_are_not_compared(make_run, tmp_path):
    make_run("a")
    folder = make_run("b")
    file = folder / "results.json"
    text = file.read_text().replace('"goal_index": 3', '"goal_index": 9')
    file.write_text(text.replace("door-lock-v3", "door-unlock-v3"))
    table = compare(variants(find_runs(tmp_path)))
    assert table.rows[1][3] == "other episodes"


def test_runs_of_a_variant_are_of_the_same_goals(make_run, tmp_path):
    make_run("a", 0, starts={"reach-v3": [[1.0]]})
    make_run("a", 1, starts={"reach-v3": [[2.0]]})
    with pytest.raises(DataError, match="of other tasks, goals or evaluation settings"):
        variants(find_runs(tmp_path))


def test_other_goals_of_the_same_number_are_not_paired(make_run, tmp_path):
    make_run("a", starts={"door-lock-v3": [[1.0]]})
    make_run("b", starts={"door-lock-v3": [[2.0]]})
    table = compare(variants(find_runs(tmp_path)))
    assert table.rows[1][3] == "other episodes"


def test_what_has_no_unseen_tasks_is_in_the_table(make_run, tmp_path):
    make_run("a")
    for seed in (0, 1):
        file = make_run("b", seed) / "results.json"
        content = json.loads(file.read_text())
        content["episodes"] = [e for e in content["episodes"] if e["task"] != "door-lock-v3"]
        content["summary"]["unseen"] = None
        content["summary"]["tasks"] = content["summary"]["tasks"][:2]
        file.write_text(json.dumps(content))
    rows = compare(variants(find_runs(tmp_path))).rows
    assert rows[1][0] == "b"
    assert rows[1][2:5] == ("-", "-", "-")


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
    with pytest.raises(DataError, match="its episodes, name or seed are wrong"):
        find_runs(tmp_path)


def test_profiles_fall(make_run, tmp_path):
    make_run("a")
    profile = variants(find_runs(tmp_path))[0].profile(np.linspace(0, 1, 11))
    assert (np.diff(profile) <= 0).all()
