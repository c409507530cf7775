"""Tasks by name: tables, splits and reference scores. Neither torch nor a simulator is imported."""

from llmdpd_torchrl.tasks.scores import (
    normalized_score,
    reference_returns,
)
from llmdpd_torchrl.tasks.splits import (
    SPLITS,
    TaskSplit,
    make_split,
)
from llmdpd_torchrl.tasks.table import (
    METAWORLD_OBSERVATION_LAYOUT,
    METAWORLD_TASKS,
    TaskTable,
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
