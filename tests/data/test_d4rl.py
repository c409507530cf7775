"""Files in D4RL's layout: every kind of end, every kind of damage, and the way back."""

import h5py
import numpy as np
import pytest
import torch

from llmdpd_torchrl.data import (
    OfflineDataset,
    export_d4rl,
    load_episodes,
    read_d4rl_file,
)
from llmdpd_torchrl.utils.errors import DataError

ROWS = 12
# Three episodes: ended by a terminal (row 4), by a time-out (row 8), and cut off by the file.
TERMINAL, TIMEOUT = 4, 8


def arrays():
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(ROWS, 3)).astype(np.float32)
    following = np.concatenate([observations[1:], observations[:1] + 10])
    for row in (TERMINAL, TIMEOUT):  # the true successor is not the next episode's first row
        following[row] = 100 + row
    return {
        "observations": observations,
        "actions": generator.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": np.arange(ROWS, dtype=np.float32),
        "terminals": np.arange(ROWS) == TERMINAL,
        "timeouts": np.arange(ROWS) == TIMEOUT,
        "next_observations": following,
    }


def write(path, contents, **attributes):
    with h5py.File(path, "w") as file:
        for key, value in contents.items():
            file[key] = value
        file.attrs.update(attributes)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "line.hdf5"


def load(path, contents, **options):
    return load_episodes(write(path, contents), **options)


def check(dataset):
    """What holds for every dataset, however its ends were found."""
    data = dataset.transitions
    following = data["next"]
    assert (following["done"] == following["terminated"] | following["truncated"]).all()
    ends = (dataset.starts + dataset.lengths - 1).tolist()
    assert following["done"].squeeze(-1).nonzero().squeeze(-1).tolist() == ends
    inside = ~following["done"].squeeze(-1)[:-1]
    assert (following["observation"][:-1] == data["observation"][1:])[inside].all()
    assert (data["step_count"][dataset.starts] == 0).all()
    assert not following["done"][dataset.starts][dataset.lengths > 1].any()
    assert data["observation"].abs().sum(-1).all()  # no row is all zero


def test_every_row_keeps_its_true_successor(path):
    contents = arrays()
    dataset = load(path, contents)
    check(dataset)
    data = dataset.transitions
    assert len(data) == ROWS
    for key, array in (("observation", "observations"), ("action", "actions")):
        assert np.array_equal(data[key].numpy(), contents[array])
    assert np.array_equal(data["next", "observation"].numpy(), contents["next_observations"])
    assert data["next", "terminated"].squeeze(-1).nonzero().tolist() == [[TERMINAL]]
    # The tail that nothing ended is truncated.
    assert data["next", "truncated"].squeeze(-1).nonzero().tolist() == [[TIMEOUT], [ROWS - 1]]
    assert dataset.lengths.tolist() == [5, 4, 3]
    assert data["step_count"].squeeze(-1).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert data["trajectory_id"].squeeze(-1).tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert dataset.trajectory_return.tolist() == [10.0, 26.0, 30.0]


def test_without_successors_only_what_is_unknown_is_dropped(path):
    contents = arrays()
    del contents["next_observations"]
    dataset = load(path, contents)
    check(dataset)
    data, observations = dataset.transitions, torch.from_numpy(contents["observations"])
    # The terminal row is kept; the time-out's and the tail's last rows have no known successor.
    assert dataset.lengths.tolist() == [5, 3, 2]
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert torch.equal(data["observation"], observations[kept])
    successors = [1, 2, 3, 4, TERMINAL, 6, 7, 8, 10, 11]
    assert torch.equal(data["next", "observation"], observations[successors])
    assert data["next", "terminated"].squeeze(-1).nonzero().tolist() == [[4]]
    assert data["next", "truncated"].squeeze(-1).nonzero().tolist() == [[7], [9]]


def test_a_single_row_without_known_successor_leaves_no_episode(path):
    contents = {key: value[:1] for key, value in arrays().items() if key != "next_observations"}
    with pytest.raises(DataError, match="has no transition"):
        load(path, contents)


def test_a_time_out_right_after_an_end_spares_the_episode_before(path):
    contents = arrays()
    del contents["next_observations"]
    contents["timeouts"] = np.isin(np.arange(ROWS), (5, ROWS - 1))  # an episode of one row
    dataset = load(path, contents)
    check(dataset)
    assert dataset.lengths.tolist() == [5, 5]
    assert dataset.transitions["next", "truncated"].squeeze(-1).nonzero().tolist() == [[9]]


def test_without_timeouts_successors_show_the_ends(path):
    contents = arrays()
    del contents["timeouts"]
    dataset = load(path, contents)
    check(dataset)
    assert torch.equal(
        dataset.transitions["next", "truncated"].squeeze(-1).nonzero().squeeze(-1),
        torch.tensor([TIMEOUT, ROWS - 1]),
    )


def test_without_timeouts_and_successors_the_time_limit_does(path):
    contents = arrays()
    del contents["timeouts"], contents["next_observations"]
    dataset = load(path, contents, max_episode_steps=4)
    check(dataset)
    # Time limit after rows 3 and 8 (the count starts anew after the terminal in row 4).
    assert dataset.lengths.tolist() == [3, 1, 3, 2]
    with pytest.raises(DataError, match=r"neither 'timeouts' nor 'next_observations'.*max_episode"):
        load(path, contents)


def test_one_whole_episode(path):
    contents = {key: value[: TERMINAL + 1] for key, value in arrays().items()}
    dataset = load(path, contents)
    assert dataset.lengths.tolist() == [5]
    assert not dataset.transitions["next", "truncated"].any()


def test_numbers_of_other_types_are_cast(path):
    contents = arrays()
    contents |= {key: contents[key].astype(np.float64) for key in ("observations", "rewards")}
    contents["terminals"] = contents["terminals"].astype(np.uint8)[:, None]
    contents["rewards"] = contents["rewards"][:, None]
    dataset = load(path, contents)
    check(dataset)
    assert dataset.transitions["observation"].dtype == torch.float32
    assert dataset.transitions["next", "reward"].shape == (ROWS, 1)


def test_groups_of_text_do_no_harm(path):
    contents = arrays() | {
        "metadata/algorithm": "SAC",
        "metadata/nested/names": np.array([b"a", b"b"]),
        "infos/comment": np.array([b"x"] * ROWS),
    }
    dataset = load_episodes(write(path, contents, env_id="Hopper-v4", tasks='[{"id": 0}]', n=3))
    assert len(dataset.transitions) == ROWS
    assert dataset.manifest.environment == "Hopper-v4"
    assert dataset.manifest.settings[str(path)] == {
        "env_id": "Hopper-v4",
        "tasks": [{"id": 0}],
        "n": 3,
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"rewards": None}, "has no array 'rewards'.*found actions"),
        ({"rewards": np.array([b"x"] * ROWS)}, "rewards is of type"),
        ({"actions": np.zeros((ROWS - 1, 2))}, r"actions has shape \(11, 2\), observations"),
        ({"actions": np.full((ROWS, 2), 3.0)}, "action reaches from 3 to 3"),
        ({"observations": np.full((ROWS, 3), np.nan)}, "observation is not finite in 12 of 12"),
        ({"rewards": np.zeros((ROWS, 2))}, r"reward has shape \(12, 2\), it must be \[rows\]"),
        ({"timeouts": np.full(ROWS, 7)}, "timeouts must hold flags"),
        ({key: value[:0] for key, value in arrays().items()}, "has no transition"),
    ],
)
def test_damage_is_named_in_one_line(path, damage, message):
    contents = {key: value for key, value in (arrays() | damage).items() if value is not None}
    with pytest.raises(DataError, match=message) as caught:
        load(path, contents)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_rows_and_no_successors(path):
    contents = {key: value[:0] for key, value in arrays().items() if key != "next_observations"}
    with pytest.raises(DataError, match="has no transition"):
        load(path, contents)


def test_a_file_of_nothing_but_text(path):
    write(path, {"metadata/algorithm": "SAC"})
    with pytest.raises(DataError, match=r"has no array 'observations'.*found metadata"):
        load_episodes(path)


def test_a_group_in_place_of_an_array(path):
    contents = arrays()
    contents["observations/state"] = contents.pop("observations")
    write(path, contents)
    with pytest.raises(DataError, match="has no array 'observations'"):
        load_episodes(path)


def test_a_truncated_file_a_folder_and_no_file(path, tmp_path):
    write(path, arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_episodes(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_episodes(path)
    with pytest.raises(DataError, match="is a folder"):
        read_d4rl_file(tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        load_episodes(tmp_path / "missing.hdf5")


def test_several_files_are_several_tasks(tmp_path):
    contents = arrays()
    paths = [write(tmp_path / f"{name}.hdf5", contents) for name in ("medium", "expert")]
    dataset = load_episodes(paths)
    check(dataset)
    assert dataset.tasks == ("medium", "expert")
    assert dataset.trajectory_task.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.transitions["trajectory_id"].unique().tolist() == list(range(6))
    assert dataset.manifest.tasks["expert"].transitions == ROWS
    narrow = write(tmp_path / "narrow.hdf5", contents | {"actions": contents["actions"][:, :1]})
    with pytest.raises(
        DataError, match=r"narrow.hdf5: action is float32\[1\], that of .*medium.hdf5 float32\[2\]"
    ):
        load_episodes([paths[0], narrow])


def test_a_column_can_tell_tasks_apart(path):
    contents = arrays()
    contents["infos/speed_id"] = np.array([1] * 5 + [0] * 7, dtype=np.int16)
    contents["infos/speed"] = np.arange(ROWS, dtype=np.float32)[:, None]
    dataset = load(path, contents, task_key="speed_id", infos=["speed"])
    assert dataset.tasks == ("line/0", "line/1")
    assert dataset.trajectory_task.tolist() == [1, 0, 0]
    assert dataset.transitions["info", "speed"].squeeze(-1).tolist() == list(range(ROWS))
    with pytest.raises(DataError, match="has no array 'infos/none'"):
        load(path, contents, task_key="none")


def test_round_trip_of_metaworld_data(dataset, path):
    export_d4rl(dataset, path)
    again = load_episodes(path)
    assert again.tasks == dataset.tasks
    expected = dataset.transitions.exclude("expert_action")  # which the format has no place for
    assert (again.transitions == expected).all()
    assert set(again.transitions.keys(True, True)) == set(expected.keys(True, True))
    assert again.manifest.observation_layout["fields"] == {
        key: list(value) for key, value in dataset.manifest.observation_layout["fields"].items()
    }
    assert torch.equal(again.trajectory_success, dataset.trajectory_success)


def test_round_trip_of_a_file_with_further_columns(path, tmp_path):
    contents = arrays() | {"infos/id": np.arange(ROWS, dtype=np.int8)}
    first = load(path, contents, infos=["id"])
    export_d4rl(first, tmp_path / "again.hdf5")
    second = load_episodes(tmp_path / "again.hdf5", infos=["id"])
    assert (first.transitions == second.transitions).all()
    assert first.manifest.data_hash == second.manifest.data_hash


def test_the_layout_that_is_written_is_d4rls(dataset, path):
    export_d4rl(dataset, path)
    with h5py.File(path) as file:
        rows = len(dataset.transitions)
        assert file["observations"].shape == (rows, 39)
        assert file["rewards"].shape == file["terminals"].shape == file["timeouts"].shape == (rows,)
        assert file["timeouts"][-1]


def test_the_reader_alone_gives_a_recording(path):
    recording = read_d4rl_file(write(path, arrays()), name="other")
    assert OfflineDataset.from_recordings([recording]).tasks == ("other",)


def test_arrays_in_memory_are_read_like_a_file(path):
    contents = arrays()
    named = contents | {"metadata/algorithm": np.bytes_(b"SAC"), "infos/id": np.arange(ROWS)}
    dataset = load_episodes(named, infos=["id"])
    check(dataset)
    assert (dataset.transitions.exclude("info") == load(path, contents).transitions).all()
    assert dataset.transitions["info", "id"].squeeze(-1).tolist() == list(range(ROWS))
    assert dataset.tasks == ("arrays",)
    # What needs no casting is not copied.
    shared = dataset.transitions["observation"].numpy()
    assert np.shares_memory(shared, contents["observations"])
    with pytest.raises(DataError, match=r"arrays: has no array 'rewards', .* found actions"):
        load_episodes({key: value for key, value in contents.items() if key != "rewards"})


def test_an_environment_gives_its_dataset_name_and_time_limit(path):
    contents = arrays()
    del contents["timeouts"], contents["next_observations"]

    class Line:
        spec = type("Spec", (), {"id": "line-medium-v0"})
        _max_episode_steps = 4

        def get_dataset(self):
            return contents

    dataset = load_episodes(Line())
    check(dataset)
    assert dataset.tasks == ("line-medium-v0",)
    assert dataset.manifest.environment == "line-medium-v0"
    assert dataset.lengths.tolist() == load(path, contents, max_episode_steps=4).lengths.tolist()
    both = load_episodes([Line(), write(path, contents)], max_episode_steps=4)
    assert both.tasks == ("line-medium-v0", "line")


def test_further_columns_must_fit(tmp_path):
    first = write(tmp_path / "a.hdf5", arrays() | {"infos/x": np.zeros(ROWS, np.int8)})
    cases = {
        r"b.hdf5: infos/x is int8\[2\], that": {"infos/x": np.zeros((ROWS, 2), np.int8)},
        r"b.hdf5: infos/x is float64\[\], that": {"infos/x": np.zeros(ROWS)},
        r"b.hdf5: success is bool\[\], that of .*a.hdf5 absent": {
            "infos/x": np.zeros(ROWS, np.int8),
            "infos/success": np.zeros(ROWS),
        },
    }
    for message, other in cases.items():
        second = write(tmp_path / "b.hdf5", arrays() | other)
        with pytest.raises(DataError, match=message):
            load_episodes([first, second], infos=["x"])


@pytest.mark.parametrize("name", ["success", "task", "task_id"])
def test_a_column_can_be_kept_under_any_name(path, name):
    ids = np.array([0] * 5 + [1] * 7)
    contents = arrays() | {f"infos/{name}": ids, "infos/of": ids}
    dataset = load(path, contents, task_key="of", infos=[name])
    assert dataset.tasks == ("line/0", "line/1")
    assert dataset.transitions["info", name].squeeze(-1).tolist() == ids.tolist()


@pytest.mark.parametrize(("first", "second"), [("f8", "f4"), ("f4", "f8"), ("f4", "f2")])
def test_ends_do_not_depend_on_the_precision_of_the_successors(tmp_path, first, second):
    steps = np.cumsum(np.random.default_rng(0).normal(size=(13, 3)), 0)
    successors = steps[1:].copy()
    successors[5] += 1.0  # the end of the first episode
    contents = {
        "observations": steps[:-1].astype(first),
        "next_observations": successors.astype(second),
        "actions": np.zeros((12, 2), np.float32),
        "rewards": np.zeros(12, np.float32),
        "terminals": np.zeros(12, np.bool_),
    }
    assert load_episodes(contents).lengths.tolist() == [6, 6]


@pytest.mark.parametrize("marked", [True, False])
def test_a_jump_that_no_flag_explains_is_reported(marked, capsys):
    steps = np.arange(13.0).reshape(13, 1).repeat(3, axis=1)
    successors = steps[1:].copy()
    successors[5] += 1.0  # another episode begins in row 6
    timeouts = np.zeros(12, np.bool_)
    timeouts[[5, 11] if marked else [11]] = True
    contents = {
        "observations": steps[:-1],
        "next_observations": successors,
        "actions": np.zeros((12, 2), np.float32),
        "rewards": np.zeros(12, np.float32),
        "terminals": np.zeros(12, np.bool_),
        "timeouts": timeouts,
    }
    lengths = load_episodes(contents, progress=False).lengths.tolist()
    said = capsys.readouterr().err
    assert (lengths, "row 5 says" in said) == (([6, 6], False) if marked else ([12], True))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
def test_flags_of_any_numeric_type_become_bool(kind):
    contents = {
        "observations": np.zeros((4, 3), np.float64),
        "actions": np.zeros((4, 2), np.int64),
        "rewards": np.zeros(4, np.int64),
        "terminals": np.array([0, 1, 0, 0], kind),
        "timeouts": np.array([0, 0, 0, 1], kind),
        "next_observations": np.zeros((4, 3), np.float64),
    }
    data = load_episodes(contents).transitions
    assert {data["next", key].dtype for key in ("terminated", "truncated", "done")} == {torch.bool}
    assert data["next", "terminated"].squeeze(-1).tolist() == [False, True, False, False]
    assert {data[key].dtype for key in ("observation", "action")} == {torch.float32}
    for wrong in (2, -1, np.nan):
        if kind(0).dtype.kind == "f" or wrong == 2:
            with pytest.raises(DataError, match="terminals must hold flags, 0 or 1"):
                load_episodes(contents | {"terminals": np.array([0, wrong, 0, 0], kind)})
