"""Tasks by name: tables, splits and reference returns. Imports neither torch nor a simulator."""

from llmdpd_torchrl.tasks.table import (
    FOLDS,
    METAWORLD_OBSERVATION_LAYOUT,
    METAWORLD_TASKS,
    SCENES,
    SPLITS,
    TaskSplit,
    TaskTable,
    make_split,
    normalized_score,
    reference_returns,
    scene_of,
)

__all__ = [
    "FOLDS",
    "METAWORLD_OBSERVATION_LAYOUT",
    "METAWORLD_TASKS",
    "SCENES",
    "SPLITS",
    "TaskSplit",
    "TaskTable",
    "make_split",
    "normalized_score",
    "reference_returns",
    "scene_of",
]
