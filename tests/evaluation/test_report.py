"""Tables, and the page in a real browser."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from llmdpd_torchrl.commands.report import main
from llmdpd_torchrl.evaluation.report import compare, task_table, write_report
from llmdpd_torchrl.evaluation.results import find_runs, variants
from llmdpd_torchrl.evaluation.video import add_caption
from llmdpd_torchrl.trainers.loggers import write_mp4
from llmdpd_torchrl.utils.errors import DataError

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome")
     if (path := shutil.which(name))), None,
)  # fmt: skip


# --- tables ----------------------------------------------------------------------------------


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


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture
def report(make_run, fill_run, tmp_path):
    """A page with everything on it: two variants, a crashed episode, all figures, a video."""
    folder = make_run(
        "ours", 0, error="the simulator failed: <b>bold</b>", command=["train", "a=1"]
    )
    make_run("ours", 1)
    make_run("a rather long name of a variant", 0, succeeds=lambda task, goal: False)
    fill_run(folder)
    frames = [np.full((48, 64, 3), level, np.uint8) for level in range(0, 200, 10)]
    write_mp4(folder / "episodes.mp4", add_caption(frames, "Lock the door. [success]"), 10)
    return write_report(tmp_path / "outputs")


def test_everything_is_there(report):
    text = report.read_text()
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)  # self-contained
    assert text.count("<img") == 6  # profiles, success twice, learning, confusion, prompts
    assert text.count("<video") == 1
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "<code>train a=1</code>" in text
    names = {path.name for path in report.parent.iterdir()}
    for name in ("comparison", "tasks"):
        assert {f"{name}.md", f"{name}.csv", f"{name}.tex"} <= names
    for path in report.parent.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 5


def test_it_is_the_same_again(report, tmp_path):
    before = report.read_bytes()
    assert write_report(tmp_path / "outputs").read_bytes() == before


def test_a_bare_run(make_run, tmp_path):
    make_run("alone")
    page = write_report(tmp_path / "outputs", tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere" / "report.html"
    assert page.read_text().count("<img") == 2


@pytest.mark.integration
@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (400, "dark")])
def test_in_a_browser(report, width, scheme, tmp_path):
    from playwright.sync_api import sync_playwright

    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(request.url[:80]))
        page.goto(report.as_uri())
        pictures = page.eval_on_selector_all(
            "img", "all => all.map(e => [e.complete, e.naturalWidth, e.clientWidth, e.alt])"
        )
        page.wait_for_function("document.querySelector('video').readyState >= 2")
        # Wide tables scroll by themselves; the page does not.
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
        first = page.inner_text("h1"), page.inner_text("h2 >> nth=0")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert said == []
    assert len(pictures) == 6
    for complete, natural, shown, alternative in pictures:
        assert complete
        assert natural > 300
        assert 200 < shown <= width
        assert alternative
    assert overflow <= 0
    assert size >= 16
    assert first == ("outputs", "Comparison")


def test_from_the_command_line(make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    make_run("ours")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ours" in shown
    assert "report.html" in shown.replace("\n", "")
    make_run("broken", error="killed")
    assert main([str(tmp_path)]) == 1  # an episode crashed
    assert main([str(tmp_path / "nothing")]) == 2
    assert "there is no results.json" in capsys.readouterr().err


def test_damaged_confusion(make_run, tmp_path):
    folder = make_run("a")
    (folder / "confusion.json").write_text("{}")
    with pytest.raises(DataError, match=r"confusion\.json is damaged"):
        write_report(tmp_path)
