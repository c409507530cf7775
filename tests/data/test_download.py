"""Downloads, from a server of this machine."""

import functools
import http.server
import threading

import h5py
import numpy as np
import pytest
from torchrl.data.datasets import d4rl_infos

from llmdpd_torchrl.data import fetch_d4rl, load_episodes
from llmdpd_torchrl.utils.errors import ConfigError, DataError

NAME = "hopper-medium-v2"
ROWS = 4


def write_file(path):
    with h5py.File(path, "w") as file:
        file["observations"] = np.ones((ROWS, 11), dtype=np.float32)
        file["next_observations"] = np.ones((ROWS, 11), dtype=np.float32)
        file["actions"] = np.zeros((ROWS, 3), dtype=np.float32)
        file["rewards"] = np.ones(ROWS, dtype=np.float32)
        file["terminals"] = file["timeouts"] = np.zeros(ROWS, dtype=np.bool_)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and breaks off in the middle of ``short.hdf5``."""

    requests: list[str] = []  # noqa: RUF012 (shared by the handlers, one of which is made a request)

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/short.hdf5":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"\x89HDF\r\n\x1a\n")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    write_file(folder / "hopper_medium-v2.hdf5")
    (folder / "excuse.hdf5").write_text("<html>moved</html>")
    Handler.requests.clear()
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def served(server, monkeypatch):
    """D4RL's address of ``NAME``, moved to the server of this machine."""
    monkeypatch.setitem(d4rl_infos.D4RL_DATASETS, NAME, f"{server}/hopper_medium-v2.hdf5")
    return server


def test_a_name_is_downloaded_once(served, tmp_path):
    cache = tmp_path / "cache"
    for _ in range(2):
        dataset = load_episodes(NAME, cache=cache, progress=False)
    assert dataset.tasks == (NAME,)
    assert len(dataset.transitions) == ROWS
    assert Handler.requests == ["/hopper_medium-v2.hdf5"]
    assert [p.name for p in cache.iterdir() if p.name[0] != "."] == ["hopper_medium-v2.hdf5"]


def test_the_default_is_in_the_users_cache(served, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    path = tmp_path / "data" / "d4rl" / "hopper_medium-v2.hdf5"
    assert fetch_d4rl(NAME, progress=False) == path
    assert fetch_d4rl(NAME, progress=False) == path
    assert Handler.requests == ["/hopper_medium-v2.hdf5"]


@pytest.mark.parametrize("name", ["hopper_medium-v2.hdf5", f"{NAME}.hdf5"])
def test_a_file_put_there_by_hand_is_taken(served, tmp_path, name):
    write_file(tmp_path / name)
    assert fetch_d4rl(NAME, tmp_path) == tmp_path / name
    assert not Handler.requests


def test_an_unknown_name_says_which_are_near(tmp_path):
    with pytest.raises(ConfigError, match="no dataset 'hopper-medum-v2'; it has hopper-medium-v2"):
        load_episodes("hopper-medum-v2", cache=tmp_path)


def test_no_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(d4rl_infos.D4RL_DATASETS, NAME, "http://127.0.0.1:9/hopper_medium-v2.hdf5")
    with pytest.raises(DataError, match=r"cannot download .*put it at .*hopper_medium-v2.hdf5"):
        load_episodes(NAME, cache=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.hdf5", "File not found"),
        ("short.hdf5", "sent 8 of 1000000 bytes"),
        ("excuse.hdf5", "sent another file than expected"),
    ],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(d4rl_infos.D4RL_DATASETS, NAME, f"{server}/{name}")
    with pytest.raises(DataError, match=f"{message}.* put it at {tmp_path / name}"):
        fetch_d4rl(NAME, tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir() if p.name != "served"] == [".lock"]


def test_first_files_of_d4rl_get_their_time_limit(tmp_path):
    path = tmp_path / "hopper-medium-v0.hdf5"
    write_file(path)
    with h5py.File(path, "a") as file:
        del file["timeouts"], file["next_observations"]
    assert len(load_episodes("d4rl:hopper-medium-v0", cache=tmp_path).transitions) == ROWS - 1
