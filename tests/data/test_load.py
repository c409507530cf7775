"""Sources of episodes: files, folders, names, other libraries' data sets."""

import json

import numpy as np
import pytest
import torch
from torchrl.data.datasets import load_dataset, register_dataset

from llmdpd_torchrl.data import export_lerobot, export_minari, load_episodes
from llmdpd_torchrl.data.lerobot import INFO
from llmdpd_torchrl.utils.errors import UserError


def make_arrays(seed, rows=9):
    """Three episodes whose states follow one another: one terminates, two are truncated."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(rows + 3, 3)).astype(np.float32)
    ends = np.array([2, 5, rows - 1])
    starts = np.arange(rows) + np.repeat([0, 1, 2], [3, 3, rows - 6])
    flags = np.zeros((2, rows), bool)
    flags[0, ends[:1]] = flags[1, ends[1:]] = True
    return {
        "observations": states[starts],
        "next_observations": states[starts + 1],
        "actions": generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": generator.normal(size=rows).astype(np.float32),
        "terminals": flags[0],
        "timeouts": flags[1],
        "infos/success": flags[0],
    }


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(("left", "right")):
        np.savez(tmp_path / f"{name}.npz", **make_arrays(place))
    return tmp_path


def same(first, second):
    return bool((first.transitions == second.transitions).all())


def test_a_folder_is_a_task_a_file(folder):
    data = load_episodes(folder)
    assert data.tasks == ("left", "right")
    assert data.lengths.tolist() == [3, 3, 3] * 2
    assert same(data, load_episodes([folder / "left.npz", folder / "right.npz"]))


def test_names_put_several_sources_together(folder):
    arrays = make_arrays(2)
    data = load_episodes({"a": [str(folder / "left.npz"), arrays], "b": folder / "right.npz"})
    assert data.tasks == ("a", "b")
    assert data.trajectory_task.tolist() == [0] * 6 + [1] * 3
    assert load_episodes({"all": folder}).tasks == ("all",)


def test_arrays_in_a_list_are_tasks_of_their_own():
    data = load_episodes([make_arrays(0), make_arrays(1)])
    assert data.tasks == ("arrays/0", "arrays/1")


def test_arrays_of_other_names():
    arrays = make_arrays(0)
    wanted = load_episodes(arrays)
    arrays["obs"] = arrays.pop("observations")
    assert same(load_episodes(arrays, keys={"observations": "obs"}), wanted)
    with pytest.raises(UserError, match="has no array 'act', named by keys"):
        load_episodes(arrays, keys={"observations": "obs", "actions": "act"})


def test_mapped_data_know_their_names(folder):
    given = {"a": str(folder / "left.npz")}
    for _ in range(2):
        mapped = load_episodes(given, root=folder / "mapped", progress=False)
        assert mapped.tasks == ("a",)
    other = load_episodes({"b": given["a"]}, root=folder / "mapped", progress=False)
    assert other.tasks == ("b",)


def test_lerobot_there_and_back(folder):
    data = load_episodes(folder)
    export_lerobot(data, folder / "lr", texts={"left": "Go to the left."})
    back = load_episodes(folder / "lr")
    assert back.tasks == ("Go to the left.", "right")
    assert same(back, data)
    one = load_episodes({"l": f"{folder / 'lr'}::Go to the left."})
    assert one.tasks == ("l",)
    assert len(one.transitions) == 9
    with pytest.raises(UserError, match=r"has no task 'up'; it has Go to the left\., right"):
        load_episodes(f"{folder / 'lr'}::up")
    with pytest.raises(UserError, match="name one of them, as"):
        load_episodes({"l": folder / "lr"})


def test_lerobots_own_columns_are_enough(folder, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_lerobot(load_episodes(folder), folder / "lr")
    file = folder / "lr" / "data" / "chunk-000" / "file-000.parquet"
    table = parquet.read_table(file)
    dropped = [name for name in table.column_names if name.startswith("next.")]
    parquet.write_table(table.drop_columns(dropped), file)
    data = load_episodes(folder / "lr")
    assert data.lengths.tolist() == [2] * 6  # the last successor of an episode is not known
    assert not data.transitions["next", "reward"].any()
    assert "all its rewards are 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / INFO).write_text("{"), "damaged or missing"),
        (lambda f: (f / INFO).write_text(json.dumps({"codebase_version": "v2.1"})), "version v2.1"),
        (lambda f: [p.unlink() for p in f.glob("data/*/*")], "has no file data/chunk"),
        (lambda f: [p.write_bytes(b"PAR1") for p in f.glob("data/*/*")], "damaged, or no parquet"),
        (lambda f: (f / "meta" / "tasks.parquet").unlink(), "damaged, or no parquet"),
    ],
)
def test_a_damaged_lerobot_folder_is_one_line(folder, change, says):
    export_lerobot(load_episodes(folder), folder / "lr")
    change(folder / "lr")
    with pytest.raises(UserError) as raised:
        load_episodes(folder / "lr")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_minari_there_and_back(folder, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    data = load_episodes(folder)
    export_minari(data, "toy/two-v0", texts={"left": "Go to the left."})
    back = load_episodes("toy/two-v0")
    assert back.tasks == ("Go to the left.", "right")
    assert same(back, data)
    with pytest.raises(UserError, match="already: choose another id"):
        export_minari(data, "toy/two-v0")


def test_torchrls_registry_both_ways(folder):
    buffer = load_dataset(f"episodes:{folder / 'left.npz'}", batch_size=4, seed=0)
    assert buffer.sample()["next", "reward"].shape == (4, 1)

    class Toy:
        def __init__(self, name):
            self.data = load_episodes(folder / f"{name}.npz").transitions

        def __getitem__(self, rows):
            return self.data[rows]

    register_dataset("toy", Toy, replace=True)
    data = load_episodes({"left": "torchrl:toy:left"})
    wanted = load_episodes(folder / "left.npz")
    assert torch.equal(data.transitions["action"], wanted.transitions["action"])
    with pytest.raises(UserError, match="cannot be loaded as vectors"):
        load_episodes("torchrl:nothing:left")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no.npz", "there is no such file"),
        ("{folder}/empty", "has no .hdf5 or .h5 or .npz file"),
        ("{folder}/broken.npz", "cannot be read as .npz"),
        ("{folder}/objects.npz", "cannot be read as .npz"),
        ("{folder}/words.npz", "is of type <U1, not a number"),
        ("{folder}/left.npz::right", "has no task 'right'; it has left"),
        ({}, "no source is named"),
        ({"a": []}, "task 'a' has no source"),
        (3, "a source is a int"),
        ([None], "a source is a NoneType"),
    ],
)
def test_what_is_no_source_is_one_line(folder, source, says):
    (folder / "empty").mkdir()
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    np.savez(folder / "objects.npz", observations=np.array([{}], object))
    np.savez(folder / "words.npz", **make_arrays(0) | {"actions": np.array(["a"] * 9)})
    source = source.format(folder=folder) if isinstance(source, str) else source
    with pytest.raises(UserError) as raised:
        load_episodes(source)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
