"""The report, looked at in a real browser."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from llmdpd_torchrl.evaluation.__main__ import main
from llmdpd_torchrl.evaluation.maps import plot_confusion, plot_prompt_map
from llmdpd_torchrl.evaluation.report import write_report
from llmdpd_torchrl.evaluation.video import write_video
from llmdpd_torchrl.utils.errors import DataError

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome")
     if (path := shutil.which(name))), None,
)  # fmt: skip


@pytest.fixture
def report(make_run, fill_run, tmp_path):
    """A page with everything on it: two variants, a failed episode, all figures, a film."""
    folder = make_run(
        "ours", 0, error="the simulator failed: <b>bold</b>", command=["train", "a=1"]
    )
    make_run("ours", 1)
    make_run("a rather long name of a variant", 0, succeeds=lambda task, goal: False)
    fill_run(folder)
    frames = [np.full((48, 64, 3), level, np.uint8) for level in range(0, 200, 10)]
    write_video(frames, folder / "episodes.mp4", 10, caption="Lock the door. [success]")
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
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ours" in shown
    assert "report.html" in shown.replace("\n", "")
    make_run("broken", error="killed")
    assert main(["report", str(tmp_path)]) == 1  # an episode broke off
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "there is no results.json" in capsys.readouterr().err


def test_damaged_confusion(make_run, tmp_path):
    folder = make_run("a")
    (folder / "confusion.json").write_text("{}")
    with pytest.raises(DataError, match=r"confusion\.json is damaged"):
        write_report(tmp_path)


def test_maps_of_little(tmp_path):
    import torch

    plot_prompt_map(torch.randn(1, 4), ["reach-v3"], [True], tmp_path / "map.png")
    plot_prompt_map(torch.zeros(3, 1), ["a", "b", "c"], [True, False, False], tmp_path / "b.png")
    plot_confusion({"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.5, "b": 1.0}}, tmp_path / "c.png", 3)
    assert len(list(tmp_path.iterdir())) == 3
