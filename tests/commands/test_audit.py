"""``llmdpd audit``: the verdict on a saved policy, and an audit that goes on."""

import json

import pytest

from llmdpd_torchrl.commands.audit import main

SHORT = ["--episodes", "2", "--max-steps", "3", "--workers", "1", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("here", "one_worker")


def test_the_page_of_a_policy_that_reads_demonstrations(make_policy, dataset_folder, here, capsys):
    saved = make_policy("trajectory", {"held_out_tasks": ["reach-v3", "window-open-v3"]})
    assert main([saved, "--demonstration", str(dataset_folder), *SHORT]) == 0
    folder = here / "audit-run-seed3"
    page = (folder / "audit.md").read_text()
    assert page.startswith("# Does run-seed3 listen to its prompts?")
    assert "another task's demonstration" in page
    found = json.loads((folder / "audit.json").read_text())
    assert {f["condition"] for f in found["audit"]["findings"]} == set(found["episodes"]) - {
        "own prompts"
    }
    assert "verdict" not in capsys.readouterr().err

    before = (folder / "audit.json").read_bytes()
    again = [saved, "--demonstration", str(dataset_folder), *SHORT, "--output", str(folder)]
    assert main(again) == 0
    assert (folder / "audit.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--text", "open"], "--text-file"), (["--seed", "1"], "holds another audit")],
)
def test_mistakes_end_in_one_line(make_policy, dataset_folder, here, capsys, more, says):
    saved = make_policy("trajectory", trajectory_dropout=0.2)
    given = [saved, "--demonstration", str(dataset_folder), *SHORT, "--output", "there"]
    if "--seed" in more:
        (here / "there").mkdir()
        (here / "there" / "audit.json").write_text('{"about": {}, "episodes": {}}')
    assert main([*given, *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert says in line
