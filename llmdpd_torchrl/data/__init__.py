"""Datasets: one layout for everything, task tables, validation, collection.

``llmdpd_torchrl.data.collection`` is not imported here: it needs the simulator, reading data does
not.
"""

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.manifest import Manifest, TaskRecord
from llmdpd_torchrl.data.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS, TaskTable

__all__ = [
    "METAWORLD_OBSERVATION_LAYOUT",
    "METAWORLD_TASKS",
    "Manifest",
    "TaskRecord",
    "TaskTable",
    "TrajectoryDataset",
]
