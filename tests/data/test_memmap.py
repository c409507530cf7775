"""Converted data: equal to what is read into memory, whole or not there, and small in memory."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import MemoryMappedTensor

from llmdpd_torchrl.data import (
    OfflineDataset,
    Recording,
    export_d4rl,
    load,
    load_episodes,
)
from llmdpd_torchrl.utils.errors import ConfigError, DataError

EPISODES = (
    ("fall", 5), ("time_out", 4), ("time_out", 1), ("fall", 1), ("time_out", 30), ("fall", 7),
    ("break_off", 6),
)  # fmt: skip
ROWS = sum(length for _, length in EPISODES)


@pytest.fixture
def contents(make_contents):
    return make_contents(*EPISODES)


@pytest.fixture
def path(tmp_path, write_hdf5, contents):
    return write_hdf5(tmp_path / "line.hdf5", contents, compression="gzip")


@pytest.fixture(params=[1, 200, 1000, 1 << 25])
def block_bytes(request, monkeypatch):
    """From a row at a time to all at once."""
    monkeypatch.setattr(load, "_BLOCK_BYTES", request.param)


def check_equal(sources, root, **options):
    """The same data in memory, converted, and mapped again."""
    memory = load_episodes(sources, **options)
    for _ in ("converted", "mapped again"):
        mapped = load_episodes(sources, root=root, progress=False, **options)
        assert mapped.folder is not None
        assert set(mapped.transitions.keys(True, True)) == set(memory.transitions.keys(True, True))
        for key, column in memory.transitions.items(True, True):
            other = mapped.transitions[key]
            assert isinstance(other, MemoryMappedTensor), key
            assert other.dtype == column.dtype, key
            assert torch.equal(other, column), key
        assert mapped.manifest.data_hash == memory.manifest.data_hash
        assert mapped.manifest.task_table == memory.manifest.task_table
        assert mapped.manifest.settings == memory.manifest.settings
        assert mapped.manifest.observation_layout == memory.manifest.observation_layout
        assert {k: repr(v) for k, v in mapped.manifest.tasks.items()} == {
            k: repr(v) for k, v in memory.manifest.tasks.items()
        }
        assert torch.equal(mapped.lengths, memory.lengths)
        assert torch.equal(mapped.trajectory_return, memory.trajectory_return)
    return mapped


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("absent", "options"),
    [
        ((), {}),
        (("timeouts",), {}),
        (("next_observations",), {}),
        (("timeouts", "next_observations"), {"max_episode_steps": 4}),
        (("timeouts",), {"max_episode_steps": 4}),
        ((), {"action_range": (-2.0, 2.0)}),
    ],
)
def test_every_layout_is_the_same_mapped(tmp_path, write_hdf5, contents, absent, options):
    contents = {key: value for key, value in contents.items() if key not in absent}
    path = write_hdf5(tmp_path / "line.hdf5", contents, compression="gzip")
    check_equal(path, tmp_path / "root", **options)


@pytest.mark.usefixtures("block_bytes")
def test_tasks_and_infos_are_the_same_mapped(tmp_path, write_hdf5, contents):
    ids = np.repeat(np.array([2, 0, 0, 1, 2, 0, 1]), [length for _, length in EPISODES])
    contents |= {
        "infos/speed_id": ids.astype(np.int16),
        "infos/speed": np.arange(ROWS, dtype=">f8")[:, None],
        "infos/success": np.arange(ROWS) % 9 == 0,
        "metadata/algorithm": "SAC",
    }
    path = write_hdf5(tmp_path / "line.hdf5", contents, env_id="Line-v0", score=np.nan)
    mapped = check_equal(path, tmp_path / "root", task_key="speed_id", infos=["speed"])
    assert mapped.tasks == ("line/0", "line/1", "line/2")
    assert mapped.manifest.settings[str(path)] == {"env_id": "Line-v0", "score": "nan"}


@pytest.mark.usefixtures("block_bytes")
def test_several_files_are_the_same_mapped(tmp_path, write_hdf5, make_contents, path):
    other = write_hdf5(tmp_path / "other.hdf5", make_contents(("fall", 9), ("time_out", 8), seed=1))
    mapped = check_equal([path, other], tmp_path / "root")
    assert mapped.tasks == ("line", "other")
    assert mapped.folder.name.startswith("line-and-1-more-")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_dataset_is_the_same_mapped(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    end = np.arange(5) == 4
    values = {"observations": np.arange(18.0).reshape(6, 3), "rewards": np.ones(5)}
    values |= {"terminations": end, "truncations": ~end & end}
    values["actions"] = np.zeros((5, 1), np.float32)
    minari.create_dataset_from_buffers(
        "test/line-v0",
        buffer=[EpisodeBuffer(**values)],
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float64),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
    )
    mapped = check_equal("test/line-v0", tmp_path / "root")
    assert mapped.folder.name.startswith("test-line-v0-")


def test_the_mapped_data_can_be_used_as_any(tmp_path, path):
    memory, mapped = load_episodes(path), load_episodes(path, root=tmp_path / "root")
    for episodes in (slice(1, 3), torch.tensor([0, 3, 4])):
        chosen = torch.zeros(len(memory.lengths), dtype=torch.bool)
        chosen[episodes] = True
        pair = [data.select(chosen) for data in (memory, mapped)]
        assert (pair[0].transitions == pair[1].transitions).all()
        assert pair[0].manifest.data_hash == pair[1].manifest.data_hash
    whole = mapped.select(torch.arange(len(mapped.lengths)))
    ours, theirs = whole.transitions["observation"], mapped.transitions["observation"]
    assert ours.data_ptr() == theirs.data_ptr()  # neighbours are not copied
    best = memory.trajectory_return > 0
    marked = [data.with_success(best) for data in (memory, mapped)]
    assert marked[0].manifest.data_hash == marked[1].manifest.data_hash
    assert ("next", "success") not in mapped.transitions.keys(True)
    samples = [data.replay_buffer(16, seed=3).sample() for data in (memory, mapped)]
    assert (samples[0] == samples[1]).all()


def test_a_mapped_dataset_is_exported(tmp_path, path):
    mapped = load_episodes(path, root=tmp_path / "root")
    export_d4rl(mapped, tmp_path / "again.hdf5", progress=False)
    again = load_episodes(tmp_path / "again.hdf5")
    assert (again.transitions == mapped.transitions).all()


def test_what_changes_makes_another_folder(tmp_path, path, write_hdf5, make_contents):
    root = tmp_path / "root"
    folders = [load_episodes(path, root=root, progress=False).folder for _ in range(2)]
    folders.append(load_episodes(path, root=root, infos=[], action_range=(-3, 3)).folder)
    write_hdf5(path, make_contents(("fall", 3)))
    changed = load_episodes(path, root=root)
    assert changed.lengths.tolist() == [3]
    assert folders[0] == folders[1]
    assert len({*folders, changed.folder}) == 3


def test_a_conversion_that_fails_leaves_nothing(tmp_path, write_hdf5, contents, monkeypatch):
    monkeypatch.setattr(load, "_BLOCK_BYTES", 100)
    contents["rewards"][ROWS - 2] = np.nan
    path = write_hdf5(tmp_path / "line.hdf5", contents)
    root = tmp_path / "root"
    left = root / ".line-000000000000-x.tmp"
    with pytest.raises(
        DataError, match=rf"reward is not finite in 1 of 6 rows, .* row {ROWS - 2};"
    ):
        load_episodes(path, root=root)
    assert [entry.name for entry in root.iterdir()] == [".lock"]
    # What a killed process leaves is removed by the next conversion of the same data.
    contents["rewards"][ROWS - 2] = 0.0
    folder = load_episodes(write_hdf5(path, contents), root=root).folder
    left = root / f".{folder.name}-killed.tmp"
    left.mkdir()
    (left / "action.memmap").write_bytes(b"half")
    folder.rename(tmp_path / "away")
    load_episodes(path, root=root)
    assert not left.exists()


@pytest.mark.parametrize(
    "name", ["observation.memmap", "next/done.memmap", "next/meta.json", "manifest.json"]
)
def test_damage_is_named_with_the_way_out(tmp_path, path, name):
    root = tmp_path / "root"
    folder = load_episodes(path, root=root).folder
    file = folder / name
    whole = file.read_bytes()

    def check(match):
        with pytest.raises(DataError, match=match) as caught:
            load_episodes(path, root=root)
        message = str(caught.value)
        assert str(file) in message
        assert f"delete {folder} to convert the data again" in message
        assert "\n" not in message

    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    check("damaged")
    if name.endswith(".memmap"):
        load_episodes(path, root=root, verify=False)
    file.write_bytes(whole[:middle])
    check("damaged")
    with pytest.raises(DataError, match=f"delete {folder} to convert"):
        load_episodes(path, root=root, verify=False)
    file.unlink()
    check("missing")
    shutil.rmtree(folder)
    assert len(load_episodes(path, root=root).transitions) == ROWS


@pytest.mark.parametrize("name", ["other.pickle", "next/other.pickle", "linked.json"])
def test_files_that_do_not_belong_there_are_refused(tmp_path, path, name):
    folder = load_episodes(path, root=tmp_path / "root").folder
    if name == "linked.json":
        (folder / name).symlink_to(path)
    else:
        (folder / name).write_bytes(b"\x80\x04.")
    for verify in (True, False):
        with pytest.raises(DataError, match=f"{name}: .*belong here"):
            load_episodes(path, root=tmp_path / "root", verify=verify)


def test_a_root_that_can_not_be_used(tmp_path, path, contents):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the converted data folder"):
        load_episodes(path, root=tmp_path / "file" / "root")
    with pytest.raises(ConfigError, match="arrays are in memory: leave it out"):
        load_episodes(contents, root=tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        load_episodes(tmp_path / "none.hdf5", root=tmp_path)


def _convert(path, root, barrier, counts):
    barrier.wait()
    data = load_episodes(path, root=root, progress=False)
    counts.put((str(data.folder), len(data.transitions)))


def test_processes_that_want_the_same_convert_it_once(tmp_path, path):
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Queue()
    arguments = (path, tmp_path / "root", barrier, counts)
    processes = [context.Process(target=_convert, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    results = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(results)) == 1
    assert sorted(entry.name for entry in (tmp_path / "root").iterdir()) == [
        ".lock",
        Path(results[0][0]).name,
    ]


def test_names_of_columns_are_no_paths(tmp_path, write_hdf5, contents):
    contents |= {f"infos/{key}": np.full(ROWS, value) for key, value in (("a.b", 1), ("a", 2))}
    path = write_hdf5(tmp_path / "line.hdf5", contents)
    mapped = check_equal(path, tmp_path / "root", infos=["a.b", "a"])
    assert mapped.transitions["info", "a"].unique().tolist() == [2]
    recording = Recording(
        name="line",
        source="memory",
        **dict.fromkeys(("observation", "next_observation", "action"), np.zeros((2, 1))),
        **dict.fromkeys(("reward", "terminated", "truncated"), np.zeros(2)),
        infos={"../x": np.ones(2)},
    )
    folder = tmp_path / "root" / "by hand"
    folder.mkdir()
    OfflineDataset.from_recordings([recording], folder=folder)
    assert OfflineDataset.load_mapped(folder).transitions["info", "../x"].sum() == 2
    assert not list((tmp_path / "root").glob("*x*"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_conversion_needs_a_fraction_of_the_memory_of_its_file(tmp_path):
    """What a conversion takes besides the imports is a fraction of what it converts."""
    process = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "large.hdf5")],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak, data = map(int, process.stdout.split()[-2:])
    assert data > 150 << 20
    assert peak < data / 5


# Anonymous memory is sampled by a thread; that of files that are mapped can be taken away any time.
_PEAK = """
import sys, threading, time
from pathlib import Path
import h5py, numpy as np
from llmdpd_torchrl.data import load, load_episodes

path, rows = Path(sys.argv[1]), 1_500_000
block = np.random.default_rng(0).uniform(-1, 1, (rows // 10, 11)).astype(np.float32)
with h5py.File(path, "w") as file:
    for key, shape in {"observations": (11,), "actions": (3,), "rewards": (), "terminals": (),
                       "timeouts": (), "next_observations": (11,)}.items():
        flags = key in ("terminals", "timeouts")
        data = file.create_dataset(key, (rows, *shape), bool if flags else np.float32)
        for start in range(0, rows, len(block)):
            part = block[:, : shape[0]] if shape else block[:, 0]
            part = np.arange(len(block)) % 500 == 499 if flags else part
            data[start : start + len(block)] = part & (key == "timeouts") if flags else part

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) << 10 for l in lines if l.startswith("RssAnon"))

load._BLOCK_BYTES = 1 << 22
del block
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
data = load_episodes(path, root=path.parent / "root", progress=False)
data.replay_buffer(256, seed=0).sample()
done.set()
thread.join()
size = sum(column.nbytes for column in data.transitions.values(True, True))
print(max(peak - before, 0), size)
"""
