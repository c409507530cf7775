"""Tasks by name: tables, splits and reference returns. Imports neither torch nor a simulator."""

from llmdpd_torchrl.tasks.table import (
    METAWORLD_OBSERVATION_LAYOUT,
    METAWORLD_TASKS,
    SPLITS,
    TaskSplit,
    TaskTable,
    make_split,
    normalized_score,
    reference_returns,
)

__all__ = [
    "METAWORLD_OBSERVATION_LAYOUT",
    "METAWORLD_TASKS",
    "SPLITS",
    "TaskSplit",
    "TaskTable",
    "make_split",
    "normalized_score",
    "reference_returns",
]
