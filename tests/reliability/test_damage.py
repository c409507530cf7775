"""Any byte that changes, and any file that does not belong there, is noticed and named."""

import json
import pickle
import shutil

import pytest

from llmdpd_torchrl.trainers import find_checkpoint, resume
from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError
from llmdpd_torchrl.utils.seal import SEAL_NAME, open_seal, seal_folder
from tests.reliability import harness, planted
from tests.reliability.short_training import IDENTITY, build

UPDATES = 90


@pytest.fixture
def checkpoints(uninterrupted, tmp_path):
    """A copy of the folder of a training's checkpoints; the newest and the one before it."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(uninterrupted / "checkpoints", folder)
    before, newest = sorted(path for path in folder.iterdir() if path.is_dir())[-2:]
    return folder, newest, before


def assert_passed_over(folder, before, file, capsys):
    found = find_checkpoint(folder, IDENTITY)
    assert found.path == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{file}: " in lines[0]
    assert "passed over for the one before it" in lines[0]


def test_every_flipped_byte_and_every_cut_is_noticed(checkpoints, capsys):
    folder, newest, before = checkpoints
    tried = 0
    for file, whole, damaged in harness.damages(newest, 208, seed=0):
        file.write_bytes(damaged)
        assert_passed_over(folder, before, file, capsys)
        file.write_bytes(whole)
        tried += 1
    assert tried == 208
    assert find_checkpoint(folder, IDENTITY).path == newest


def test_every_byte_of_the_seal_counts(checkpoints):
    _, newest, _ = checkpoints
    path = newest / SEAL_NAME
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ 0x01 if whole[place] != 0x0A else 0x0D])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"seal\.json: damaged"):
            open_seal(newest, "llmdpd-checkpoint", 1)


def test_a_file_too_few_and_one_too_many(checkpoints, capsys):
    folder, newest, before = checkpoints
    file = newest / "components" / "0000-logger" / "state.json"
    whole = file.read_bytes()
    file.unlink()
    assert_passed_over(folder, before, file, capsys)
    file.write_bytes(whole)
    extra = newest / "components" / "more.json"
    extra.write_text("{}")
    assert_passed_over(folder, before, extra, capsys)


def test_a_renamed_checkpoint_is_not_taken_for_another(checkpoints, capsys):
    folder, newest, before = checkpoints
    later = folder / "checkpoint-000000000500"
    newest.rename(later)
    found = find_checkpoint(folder)
    assert found.path == before
    assert "holds update 90, it was renamed" in capsys.readouterr().err


def test_another_release_is_named_and_not_passed_over(checkpoints):
    folder, newest, _ = checkpoints
    (newest / SEAL_NAME).unlink()
    seal_folder(newest, "llmdpd-checkpoint", 99, {"step": UPDATES, "identity": {}, "metric": None})
    with pytest.raises(DataError, match="version 99, this release reads"):
        find_checkpoint(folder)


# --- pickles ---------------------------------------------------------------------------------


def test_the_payload_would_run(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(planted.payload(mark))
    assert mark.exists()


def test_a_planted_pickle_is_refused_wherever_it_lies(checkpoints, tmp_path, capsys):
    folder, newest, before = checkpoints
    mark = tmp_path / "mark"
    cases = [place / name for place in planted.places(newest) for name in planted.NAMES]
    assert len(cases) == 45
    for path in cases:
        path.write_bytes(planted.payload(mark))
        assert_passed_over(folder, before, path, capsys)
        path.unlink()
    assert not mark.exists()


def test_a_link_to_a_pickle_is_refused(checkpoints, tmp_path, capsys):
    folder, newest, before = checkpoints
    (tmp_path / "x.json").write_bytes(planted.payload(tmp_path / "mark"))
    link = newest / "components" / "x.json"
    link.symlink_to(tmp_path / "x.json")
    assert_passed_over(folder, before, link, capsys)
    link.unlink()
    link.symlink_to(tmp_path, target_is_directory=True)
    assert_passed_over(folder, before, link, capsys)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("component", ["0000-logger", "0001-random", "0002-trainer"])
def test_a_forged_seal_over_pickles_runs_nothing(checkpoints, tmp_path, component, name):
    folder, newest, _ = checkpoints
    mark = tmp_path / "mark"
    about = open_seal(newest, "llmdpd-checkpoint", 1)
    (newest / SEAL_NAME).unlink()
    (newest / "components" / component / name).write_bytes(planted.payload(mark))
    seal_folder(newest, "llmdpd-checkpoint", 1, about)
    saved = find_checkpoint(folder)
    assert saved.path == newest
    trainer, _ = build(tmp_path, updates=UPDATES, every=10)
    with pytest.raises(ConfigError, match="does not fit this training") as refused:
        resume(trainer, saved)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_a_state_can_name_no_code(checkpoints):
    _, newest, _ = checkpoints
    kinds = set()

    def walk(tree):
        if isinstance(tree, dict):
            ((kind, content),) = tree.items()
            kinds.add(kind)
            for item in content if isinstance(content, list) else []:
                for part in item if kind == "dict" else [item]:
                    walk(part)
        elif isinstance(tree, list):
            for item in tree:
                walk(item)

    for path in newest.rglob("state.json"):
        walk(json.loads(path.read_text()))
    assert kinds == {"dict", "tuple", "tensor"}
