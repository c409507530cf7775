"""The transfer matrix: what is stored is not run again, and the picture has all of it."""

import pytest

from benchmarks.studies import transfer
from llmdpd_torchrl.tasks import METAWORLD_TASKS

PAIRS = {
    ("push-v3", "push-v3"): (4, 4), ("push-v3", "reach-v3"): (2, 4),
    ("reach-v3", "reach-v3"): (3, 4), ("reach-v3", "push-v3"): (0, 4),
}  # fmt: skip


def test_a_matrix_is_stored_and_read(tmp_path):
    path = tmp_path / "transfer.csv"
    assert transfer.read_matrix(path) == {}
    transfer.write_matrix(path, PAIRS)
    assert transfer.read_matrix(path) == PAIRS
    assert path.read_text().splitlines()[:2] == [
        "demonstration,task,successes,episodes", "push-v3,push-v3,4,4",
    ]  # fmt: skip


def test_figures_tell_own_from_others():
    found = transfer.figures(PAIRS, ("push-v3", "reach-v3"))
    assert found == {"own": 87.5, "others": 25, "other_pairs": 2, "other_pairs_from_half": 1}


def test_a_partial_matrix_has_a_picture(tmp_path):
    transfer.plot(PAIRS, METAWORLD_TASKS.names, tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_a_mistake_is_one_line(capsys):
    assert transfer.main(["tasks=[fly-v3]"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown task 'fly-v3'")


@pytest.mark.integration
def test_only_missing_pairs_are_run(tmp_path, capsys):
    command = [
        "tasks=[drawer-open-v3,door-close-v3]", "episodes=1", "workers=1",
        f"store={tmp_path}", f"data={tmp_path / 'data'}",
    ]  # fmt: skip
    assert transfer.main(command) == 0
    assert "2 of 2 rounds" in capsys.readouterr().out
    path = tmp_path / "transfer.csv"
    matrix = transfer.read_matrix(path)
    assert matrix["drawer-open-v3", "drawer-open-v3"] == (1, 1)
    assert transfer.main(command) == 0
    assert "rounds" not in capsys.readouterr().out
    transfer.write_matrix(path, {k: v for k, v in matrix.items() if k[0] == k[1]})
    assert transfer.main(command) == 0
    assert "1 of 2 rounds" not in (said := capsys.readouterr().out)
    assert "2 of 2 rounds" in said
    assert transfer.read_matrix(path) == matrix
