"""The manifest of a dataset: its description and its episodes, without the transitions.

A dataset is a folder with one safetensors file per task and ``manifest.json``. A task file is
written atomically, with its episode table in its header; the manifest is made from all task files.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from safetensors import SafetensorError, safe_open

from llmdpd_torchrl.utils.errors import ConfigError, DataError
from llmdpd_torchrl.utils.files import file_sha256, read_document, write_json
from llmdpd_torchrl.utils.settings import Integer, Number, Size, checked_dataclass

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_FORMAT = "llmdpd-trajectories"
TRANSITION_FIELDS = {
    "observation": "F32",
    "next_observation": "F32",
    "action": "F32",
    "expert_action": "F32",
    "reward": "F32",
    "success": "BOOL",
    "terminated": "BOOL",
    "truncated": "BOOL",
    "task_id": "I64",
    "episode": "I64",
    "step_count": "I64",
}
"""Arrays of a task file, ``[N, ...]`` with one row a transition, and their safetensors dtypes.

``action`` was executed; ``expert_action`` is what the expert wanted there, undisturbed.
"""

#: JSON has no NaN: it is null in the file.
_OrNaN = BeforeValidator(lambda value: math.nan if value is None else value)


@checked_dataclass(frozen=True)
class TaskRecord:
    """The record of one task in the manifest.

    ``episodes`` lists, per episode: ``seed``, ``noise``, ``length``, ``return`` and ``success``,
    and of experts ``gain`` and what else was done to them. Success is NaN (null in the file) if the
    data have no success flags.

    Examples:
        >>> TaskRecord("reach-v3.safetensors", "0" * 64, 200, 1.0, 950.0, episodes=[]).success_rate
        1.0
    """

    file: str
    sha256: str
    transitions: Integer
    success_rate: Annotated[float, Field(allow_inf_nan=True), _OrNaN]
    mean_return: Number
    episodes: list[dict[str, Annotated[Any, _OrNaN]]]

    @classmethod
    def from_episodes(cls, file: str, sha256: str, episodes: list[dict[str, Any]]) -> TaskRecord:
        """A record with the sum and the means of the ``episodes``."""
        count = max(len(episodes), 1)
        return cls(
            file,
            sha256,
            transitions=sum(episode["length"] for episode in episodes),
            success_rate=sum(episode["success"] for episode in episodes) / count,
            mean_return=sum(episode["return"] for episode in episodes) / count,
            episodes=episodes,
        )


@checked_dataclass(frozen=True)
class Manifest:
    """A dataset's description, written as JSON and validated when it is read.

    Attributes:
        environment: ``"metaworld"``.
        settings: all settings that the data depend on (seed, noise levels, episodes a task, ...).
        packages: versions of the packages that the data depend on.
        task_table: names in the order of ``task_id``.
        observation_layout: size, dtype and named index ranges of an observation.
        action_size: number of action components.
        tasks: a :class:`TaskRecord` for each task of the dataset.

    Examples:
        >>> layout = {"size": 39}
        >>> manifest = Manifest("metaworld", {"seed": 0}, {}, ["reach-v3"], layout, action_size=4)
        >>> manifest.tasks
        {}
    """

    environment: str
    settings: dict[str, Any]
    packages: dict[str, str]
    task_table: list[str]
    observation_layout: dict[str, Any]
    action_size: Size
    tasks: dict[str, TaskRecord] = field(default_factory=dict)

    @property
    def data_hash(self) -> str:
        """SHA-256 over the task files' hashes in the order of their names."""
        digest = hashlib.sha256()
        for name in sorted(self.tasks):
            digest.update(f"{name} {self.tasks[name].sha256}\n".encode())
        return digest.hexdigest()

    @property
    def episode_success(self) -> float:
        """The share of all episodes that succeed."""
        episodes = [episode for task in self.tasks.values() for episode in task.episodes]
        return sum(episode["success"] for episode in episodes) / max(len(episodes), 1)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        document = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "data_hash": self.data_hash,
            "episode_success": self.episode_success,
            **asdict(self),
        }
        without_nan = json.loads(json.dumps(document), parse_constant=lambda _: None)
        write_json(folder / MANIFEST_NAME, without_nan)

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read and validate the manifest of the dataset in ``folder``.

        Raises:
            DataError: naming the file, the problem and the remedy.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise DataError(
                f"no dataset in {folder}: {MANIFEST_NAME} is missing; collect one first "
                "(`llmdpd data collect --help`) or correct the path"
            )
        raw = read_document(path, _FORMAT, FORMAT_VERSION)
        try:
            manifest = cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})
        except ConfigError as error:
            line = " ".join(str(error).split())  # a key of the file may be anything
            raise DataError(f"{path}: {line}; collect the dataset again") from None
        for name in manifest.tasks:
            if name not in manifest.task_table:
                raise DataError(f"{path}: task {name!r} is not in the task table")
        if raw.get("data_hash") != manifest.data_hash:
            raise DataError(
                f"{path}: data_hash does not fit the task records; collect the dataset again"
            )
        return manifest


def task_record(path: Path, settings: dict[str, Any]) -> TaskRecord:
    """Make the record of one task file from its header, after checking the file.

    Args:
        path: a task file of a dataset.
        settings: the settings that the file must have been collected with.

    Raises:
        DataError: if the file is damaged or was collected with other settings.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["collection"])
            arrays = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            rows = {array.get_shape()[0] for array in arrays.values()}
            dtypes = {key: array.get_dtype() for key, array in arrays.items()}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: damaged or cut short ({error}); delete it and collect again"
        ) from None
    before = header["settings"]
    changed = sorted(k for k in {*settings, *before} if settings.get(k) != before.get(k))
    if changed:
        raise DataError(
            f"{path}: collected with another {', '.join(changed)}; choose another folder, or "
            "delete this one"
        )
    if {*TRANSITION_FIELDS} - {*dtypes} == {"expert_action"}:
        raise DataError(
            f"{path}: collected by an earlier version, without expert_action; choose another "
            "folder, or delete this one"
        )
    if dtypes != TRANSITION_FIELDS:
        wrong = sorted(set(dtypes.items()) ^ set(TRANSITION_FIELDS.items()))[0]
        raise DataError(f"{path}: array {wrong[0]!r} is missing, unknown or not {wrong[1]}")
    episodes = header["episodes"]
    transitions = sum(episode["length"] for episode in episodes)
    if rows != {transitions}:
        raise DataError(f"{path}: arrays do not have {transitions} rows; collect again")
    return TaskRecord.from_episodes(path.name, file_sha256(path), episodes)
