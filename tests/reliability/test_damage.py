"""Any byte that changes, and any file that does not belong there, is noticed and named."""

import json
import pickle
import shutil

import pytest

from llmdpd_torchrl.trainers import find_checkpoint, resume
from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError
from llmdpd_torchrl.utils.files import CHECKSUMS, verify_checksums, write_checksums
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


def assert_skipped(folder, before, file, capsys):
    found = find_checkpoint(folder, IDENTITY)
    assert found.path == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{file}: " in lines[0]
    assert "skipped for the one before it" in lines[0]


def test_every_flipped_byte_and_every_cut_is_noticed(checkpoints, capsys):
    folder, newest, before = checkpoints
    tried = 0
    for file, whole, damaged in harness.damages(newest, 208, seed=0):
        file.write_bytes(damaged)
        assert_skipped(folder, before, file, capsys)
        file.write_bytes(whole)
        tried += 1
    assert tried == 208
    assert find_checkpoint(folder, IDENTITY).path == newest


def test_every_byte_of_the_manifest_counts(checkpoints):
    _, newest, _ = checkpoints
    path = newest / CHECKSUMS
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ 0x01 if whole[place] != 0x0A else 0x0D])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"checksums\.sha256: damaged"):
            verify_checksums(newest, [".json", ".pt"])


def test_a_file_too_few_and_one_too_many(checkpoints, capsys):
    folder, newest, before = checkpoints
    file = newest / "components" / "0000-logger" / "state.pt"
    whole = file.read_bytes()
    file.unlink()
    assert_skipped(folder, before, file, capsys)
    file.write_bytes(whole)
    extra = newest / "components" / "more.json"
    extra.write_text("{}")
    assert_skipped(folder, before, extra, capsys)


def test_a_renamed_checkpoint_is_not_taken_for_another(checkpoints, capsys):
    folder, newest, before = checkpoints
    later = folder / "checkpoint-000000000500"
    newest.rename(later)
    found = find_checkpoint(folder)
    assert found.path == before
    assert "holds update 90, it was renamed" in capsys.readouterr().err


def test_another_release_is_named_and_not_passed_over(checkpoints):
    folder, newest, _ = checkpoints
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["metadata"]["version"] = 99
    (newest / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(newest)
    with pytest.raises(DataError, match="version 99, this release reads"):
        find_checkpoint(folder)


def test_a_checkpoint_of_an_earlier_release_is_named(checkpoints):
    folder, newest, _ = checkpoints
    (newest / "seal.json").write_text("{}")
    with pytest.raises(DataError, match="an earlier release wrote it"):
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
        original = path.read_bytes() if path.exists() else None
        path.write_bytes(planted.payload(mark))
        assert_skipped(folder, before, path, capsys)
        path.unlink()
        if original is not None:
            path.write_bytes(original)
    assert not mark.exists()


def test_a_link_to_a_pickle_is_refused(checkpoints, tmp_path, capsys):
    folder, newest, before = checkpoints
    (tmp_path / "x.json").write_bytes(planted.payload(tmp_path / "mark"))
    link = newest / "components" / "x.json"
    link.symlink_to(tmp_path / "x.json")
    assert_skipped(folder, before, link, capsys)
    link.unlink()
    link.symlink_to(tmp_path, target_is_directory=True)
    assert_skipped(folder, before, link, capsys)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("component", ["0000-logger", "0001-random", "0002-trainer"])
def test_a_forged_manifest_over_pickles_runs_nothing(checkpoints, tmp_path, component, zipped):
    folder, newest, _ = checkpoints
    mark = tmp_path / "mark"
    content = planted.zipped(mark) if zipped else planted.payload(mark)
    (newest / "components" / component / "state.pt").write_bytes(content)
    write_checksums(newest)
    saved = find_checkpoint(folder)
    assert saved.path == newest
    trainer, _ = build(tmp_path, updates=UPDATES, every=10)
    with pytest.raises(ConfigError, match="does not fit this training") as refused:
        resume(trainer, saved)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["state.tdz", "state/other.pickle", "state.tdc"])
def test_a_forged_manifest_over_another_format_is_refused(checkpoints, tmp_path, capsys, name):
    folder, newest, before = checkpoints
    path = newest / "components" / "0000-logger" / name
    (path.parent / "state.pt").unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(planted.payload(tmp_path / "mark"))
    write_checksums(newest)
    assert_skipped(folder, before, path, capsys)
