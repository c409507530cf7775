"""Files in D4RL's layout, made up."""

import h5py
import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_contents():
    """Arrays of episodes that ``fall``, ``time_out`` or ``break_off`` after so many rows each."""

    def make(*episodes, seed=0, size=3, actions=2):
        generator = np.random.default_rng(seed)
        parts = []
        for end, length in episodes:
            states = generator.normal(size=(length + 1, size)).astype(np.float32)
            last = np.arange(length) == length - 1
            parts.append(
                {
                    "observations": states[:-1],
                    "actions": generator.uniform(-1, 1, (length, actions)).astype(np.float32),
                    "rewards": generator.normal(size=length).astype(np.float32),
                    "terminals": last & (end == "fall"),
                    "timeouts": last & (end == "time_out"),
                    "next_observations": states[1:],
                }
            )
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return make


@pytest.fixture(scope="session")
def write_hdf5():
    """Writes arrays, with gzip where ``compression`` says so, and attributes; returns the path."""

    def write(path, contents, compression=None, **attributes):
        with h5py.File(path, "w") as file:
            for key, value in contents.items():
                rows = {"compression": compression} if np.ndim(value) else {}
                file.create_dataset(key, data=value, **rows)
            file.attrs.update(attributes)
        return path

    return write
