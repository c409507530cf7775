"""HDF5 files that are damaged, or that make a reader open other files."""

import h5py
import numpy as np
import pytest

from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.utils.errors import DataError


@pytest.fixture
def contents(make_contents):
    return make_contents(("fall", 400), ("time_out", 300))


@pytest.fixture(params=["memory", "mapped"])
def load(request, tmp_path):
    """Both ways of reading."""

    def load(path, **options):
        root = tmp_path / "root" if request.param == "mapped" else None
        return load_episodes(path, root=root, progress=False, **options)

    return load


def refuse(load, path, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        load(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_chunk(load, tmp_path, write_hdf5, contents):
    path = write_hdf5(tmp_path / "line.hdf5", contents, compression="gzip")
    assert len(load(path).transitions) == 700
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    refuse(load, path, "cannot be read as HDF5 .*damaged, cut short or of another kind")


def test_damage_anywhere_is_one_line_or_does_no_harm(tmp_path, write_hdf5, contents):
    """What is damaged gives an error of ours, whichever byte it is."""
    path = write_hdf5(tmp_path / "line.hdf5", contents, compression="gzip", env_id="Line-v0")
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(300):
        data = bytearray(whole)
        start = generator.integers(len(data) // 4)  # most of HDF5's own structures lie in front
        data[start : start + 8] = generator.bytes(8)
        path.write_bytes(data)
        try:
            load_episodes(path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_links_are_not_followed(load, tmp_path, write_hdf5, contents):
    other = write_hdf5(tmp_path / "other.hdf5", contents | {"infos/x": np.zeros(700)})
    for key, target in (("observations", "observations"), ("infos", "infos")):
        path = write_hdf5(tmp_path / f"{key}.hdf5", {k: v for k, v in contents.items() if k != key})
        with h5py.File(path, "a") as file:
            file[key] = h5py.ExternalLink(other, target)
        name = "infos" if key == "infos" else key
        refuse(
            load, path, rf"{name} is a link \(ExternalLink\), which is not followed", infos=["x"]
        )
    path = write_hdf5(tmp_path / "soft.hdf5", contents)
    with h5py.File(path, "a") as file:
        file["away"] = h5py.ExternalLink(other, "/")
        del file["actions"]
        file["actions"] = h5py.SoftLink("/away/actions")
    refuse(load, path, r"actions is a link \(SoftLink\)")


def test_a_link_that_is_not_needed_does_no_harm(load, tmp_path, write_hdf5, contents):
    path = write_hdf5(tmp_path / "line.hdf5", contents)
    with h5py.File(path, "a") as file:
        file["metadata"] = h5py.ExternalLink(tmp_path / "none.hdf5", "/")
    assert len(load(path).transitions) == 700


def test_virtual_and_external_arrays_are_not_read(load, tmp_path, write_hdf5, contents):
    other = write_hdf5(tmp_path / "other.hdf5", contents)
    rewards = contents.pop("rewards")
    path = write_hdf5(tmp_path / "virtual.hdf5", contents)
    layout = h5py.VirtualLayout((700,), np.float32)
    layout[:] = h5py.VirtualSource(other, "rewards", (700,))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("rewards", layout)
    refuse(load, path, "rewards is stored in other files, which are not opened")
    path = write_hdf5(tmp_path / "external.hdf5", contents)
    (tmp_path / "secret.raw").write_bytes(rewards.tobytes())
    with h5py.File(path, "a") as file:
        file.create_dataset(
            "rewards", (700,), np.float32, external=[(str(tmp_path / "secret.raw"), 0, 2800)]
        )
    refuse(load, path, "rewards is stored in other files, which are not opened")


def test_attributes_are_what_json_can_hold(load, tmp_path, write_hdf5, contents):
    path = write_hdf5(
        tmp_path / "line.hdf5",
        contents,
        raw=np.bytes_(b"a\xff"),
        names=np.array([b"x", b"y"]),
        nothing=h5py.Empty("f"),
        infinite=np.array([np.inf, 1.0]),
        odd="[not JSON",
        nan='{"a": NaN}',
        flag=np.bool_(True),
    )
    settings = load(path).manifest.settings[str(path)]
    assert settings.pop("nothing").startswith("Empty")
    assert settings == {
        "raw": "a\ufffd",
        "names": ["x", "y"],
        "infinite": ["inf", 1.0],
        "odd": "[not JSON",
        "nan": {"a": "NaN"},
        "flag": True,
    }


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"observations": np.zeros((700, 3), "S4")}, "observations is of type"),
        ({"terminals": np.full(700, 0.5)}, "terminals must hold flags"),
        ({"next_observations": np.zeros((700, 4), np.float32)}, "next_observations has shape"),
        ({"actions": np.zeros((700, 0), np.float32)}, r"action has shape \(\d+, 0\), it must be"),
        ({"rewards": np.full(700, 1e300)}, "reward is not finite in"),
        ({"rewards": np.float32(3)}, r"rewards has shape \(\), observations"),
        ({"observations": np.zeros(700, np.float32), "next_observations": np.zeros(700)},
         "observation has shape"),
    ],
)  # fmt: skip
def test_wrong_arrays(load, tmp_path, write_hdf5, contents, change, match):
    path = write_hdf5(tmp_path / "line.hdf5", contents | change)
    refuse(load, path, match)


def test_no_rows(load, tmp_path, write_hdf5, contents):
    path = write_hdf5(tmp_path / "none.hdf5", {key: value[:0] for key, value in contents.items()})
    refuse(load, path, "has no transition")
