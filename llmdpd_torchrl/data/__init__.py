"""Datasets: one layout for everything, task tables, validation, collection, readers, exports.

``llmdpd_torchrl.data.collection`` is not imported here: it needs the simulator, reading data does
not.
"""

from llmdpd_torchrl.data.d4rl import iter_d4rl_file, read_d4rl_arrays, read_d4rl_file
from llmdpd_torchrl.data.d4rl_export import export_d4rl
from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.fetch import fetch_d4rl
from llmdpd_torchrl.data.load import load_episodes
from llmdpd_torchrl.data.manifest import Manifest, TaskRecord
from llmdpd_torchrl.data.minari import export_minari, read_minari
from llmdpd_torchrl.data.offline import OfflineDataset
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.data.replay import EpisodeExperienceReplay
from llmdpd_torchrl.data.scores import normalized_score, reference_returns
from llmdpd_torchrl.data.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS, TaskTable

__all__ = [
    "METAWORLD_OBSERVATION_LAYOUT",
    "METAWORLD_TASKS",
    "EpisodeExperienceReplay",
    "Manifest",
    "OfflineDataset",
    "Recording",
    "TaskRecord",
    "TaskTable",
    "TrajectoryDataset",
    "export_d4rl",
    "export_minari",
    "fetch_d4rl",
    "iter_d4rl_file",
    "load_episodes",
    "normalized_score",
    "read_d4rl_arrays",
    "read_d4rl_file",
    "read_minari",
    "reference_returns",
]
