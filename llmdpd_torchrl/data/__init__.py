"""Datasets in one layout: readers, checks and exports, without a simulator."""

from llmdpd_torchrl.data.d4rl import export_d4rl, read_d4rl_file
from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.download import fetch_d4rl
from llmdpd_torchrl.data.lerobot import export_lerobot
from llmdpd_torchrl.data.load import load_episodes
from llmdpd_torchrl.data.manifest import Manifest, TaskRecord
from llmdpd_torchrl.data.minari import export_minari, read_minari
from llmdpd_torchrl.data.recorded_dataset import OfflineDataset
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.data.replay import EpisodeExperienceReplay

__all__ = [
    "EpisodeExperienceReplay",
    "Manifest",
    "OfflineDataset",
    "Recording",
    "TaskRecord",
    "TrajectoryDataset",
    "export_d4rl",
    "export_lerobot",
    "export_minari",
    "fetch_d4rl",
    "load_episodes",
    "read_d4rl_file",
    "read_minari",
]
