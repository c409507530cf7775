"""LeRobot's datasets (v3) by their columns: states and actions, no pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.data.d4rl import iter_d4rl_arrays
from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.utils.errors import (
    ConfigError,
    DataError,
    explain_hub_errors,
    first_line,
    import_optional,
    notice,
)
from llmdpd_torchrl.utils.files import write_folder_atomic
from llmdpd_torchrl.utils.memory import check_memory

INFO = Path("meta") / "info.json"
VERSION = "v3.0"
_TASKS = Path("meta") / "tasks.parquet"
#: The columns of a file by our names of D4RL's layout. The last two are of our own exports: without
#: them, the last step of an episode has no known successor, and is left out.
_COLUMNS = {
    "observations": "observation.state",
    "actions": "action",
    "rewards": "next.reward",
    "infos/success": "next.success",
    "terminals": "next.terminated",
    "next_observations": "next.observation.state",
}
_FIELDS = "observation_fields"
_EPISODE, _TASK, _INDEX, _FRAME = "episode_index", "task_index", "index", "frame_index"


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a dataset of LeRobot's."""
    return (folder / INFO).is_file()


def fetch_lerobot(repository: str, revision: str | None = None) -> Path:
    """The folder of a dataset on the Hugging Face Hub, without its pictures and videos.

    Raises:
        DataError: if it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    with explain_hub_errors(f"LeRobot dataset {repository}"):
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=["meta/**", "data/**"],
            )
        )


def iter_lerobot(
    folder: Path, *, name: str, keys: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Recording]:
    """The episodes of a folder, each under the text of its task.

    Without a column ``next.reward`` all rewards are 0, which is said; an episode then serves for
    cloning and as a demonstration only.

    Args:
        folder: of the dataset.
        name: of the dataset, for messages.
        keys: other columns than LeRobot's, by the names of D4RL's layout.
        **options: of :func:`~llmdpd_torchrl.data.d4rl.iter_d4rl_arrays`.

    Raises:
        ConfigError: if pyarrow is missing, or the data do not fit into memory.
        DataError: if the folder is damaged, of another version, or lacks a column.
    """
    options.pop("task_key", None)
    columns = _COLUMNS | dict(keys or {})
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INFO}: damaged or missing ({error})") from None
    if not version.startswith("v3"):
        raise DataError(
            f"{folder}: is of LeRobot's version {version}; convert it to {VERSION} with LeRobot's "
            "own script, which reads the old ones"
        )
    arrays, names = _read(folder, columns)
    ends = np.append(np.diff(arrays.pop(_EPISODE)) != 0, True)
    terminated = arrays.setdefault("terminals", np.zeros(len(ends), np.bool_)).astype(np.bool_)
    arrays["terminals"] = terminated & ends
    arrays["timeouts"] = ends & ~terminated
    if "rewards" not in arrays:
        notice(f"{name} has no column {columns['rewards']}: all its rewards are 0")
        arrays["rewards"] = np.zeros(len(ends), np.float32)
    arrays["infos/task_id"] = arrays.pop(_TASK, np.zeros(len(ends), np.int64))
    attributes: dict[str, Any] = {
        "task_table": names,
        "env_id": str(info.get("robot_type") or "unknown"),
    }
    if _FIELDS in info:  # of our own exports
        attributes[_FIELDS] = info[_FIELDS]
    yield from iter_d4rl_arrays(
        arrays, name=name, source=str(folder), attributes=attributes, **options
    )


def _read(
    folder: Path, columns: Mapping[str, str]
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The columns, by our names, of all files, and the texts of the tasks."""
    parquet: Any = import_optional("pyarrow.parquet", "a LeRobot dataset", "lerobot")
    arrow: Any = import_optional("pyarrow", "a LeRobot dataset", "lerobot")
    files = sorted((folder / "data").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{folder}: has no file data/chunk-*/file-*.parquet; download it again")
    wanted = {**columns, _EPISODE: _EPISODE, _TASK: _TASK}
    parts: dict[str, list[NDArray[Any]]] = {}
    try:
        has = set(parquet.read_schema(files[0]).names)
        for needed in ("observations", "actions", _EPISODE):
            if wanted[needed] not in has:
                raise DataError(
                    f"{folder}: has no column {wanted[needed]!r}; it has {', '.join(sorted(has))}: "
                    f"name the right one under keys, as {needed}"
                )
        chosen = {ours: theirs for ours, theirs in wanted.items() if theirs in has}
        size = sum(parquet.read_metadata(file).num_rows for file in files) * 4 * 64
        check_memory(size, str(folder))
        for file in files:
            table = parquet.read_table(file, columns=list(chosen.values()))
            for ours, theirs in chosen.items():
                parts.setdefault(ours, []).append(_array(table[theirs], f"{file}: {theirs}"))
        texts = parquet.read_table(folder / _TASKS).to_pydict()
    except (OSError, ValueError, KeyError, arrow.lib.ArrowException) as error:
        raise DataError(f"{folder}: damaged, or no parquet ({first_line(error)})") from None
    arrays = {key: np.concatenate(several) for key, several in parts.items()}
    label = next((key for key in texts if key != _TASK), None)  # pandas' index, of any name
    if label is None or _TASK not in texts:
        raise DataError(f"{folder / _TASKS}: has {', '.join(texts)}, not a text and a {_TASK}")
    by_number = dict(zip(texts[_TASK], map(str, texts[label]), strict=True))
    most = int(arrays[_TASK].max()) if _TASK in arrays and len(arrays[_TASK]) else 0
    return arrays, tuple(by_number.get(number, f"task {number}") for number in range(most + 1))


def _array(column: Any, source: str) -> NDArray[Any]:
    """A column of numbers, or of lists of equally many numbers."""
    array = column.combine_chunks().to_numpy(zero_copy_only=False)
    if array.dtype != object:
        return array
    if not len(array) or isinstance(array[0], np.ndarray):
        widths = {len(row) for row in array}
        if len(widths) == 1:
            return np.stack(array)
    raise DataError(f"{source} holds no vectors of one width: pictures and words are not read")


def export_lerobot(
    dataset: TrajectoryDataset,
    folder: str | Path,
    *,
    texts: Mapping[str, str] | None = None,
    fps: int = 10,
) -> None:
    """Write a dataset as LeRobot's v3, which :func:`load_episodes` and LeRobot read.

    Two columns more than LeRobot's, ``next.observation.state`` and ``next.terminated``, make it
    exact.

    Args:
        dataset: any dataset of trajectories.
        folder: a new one.
        texts: by task, its words; default: the tasks' names.
        fps: steps a second, for LeRobot's time stamps.

    Raises:
        ConfigError: if pyarrow is missing, or the folder is there already.
    """
    arrow: Any = import_optional("pyarrow", "an export to LeRobot", "lerobot")
    parquet: Any = import_optional("pyarrow.parquet", "an export to LeRobot", "lerobot")
    data, lengths = dataset.transitions, dataset.lengths.numpy()
    names = [dataset.manifest.task_table[i] for i in dataset.trajectory_task.unique().tolist()]
    words = [(texts or {}).get(name, name) for name in names]
    number = {dataset.manifest.task_table.index(name): place for place, name in enumerate(names)}
    task = np.array([number[i] for i in dataset.trajectory_task.tolist()], np.int64)
    frame = np.concatenate([np.arange(length) for length in lengths])
    following = data["next"]
    columns: dict[str, NDArray[Any]] = {
        "observation.state": data["observation"].numpy(),
        "action": data["action"].numpy(),
        "next.reward": following["reward"].squeeze(-1).numpy(),
        "next.done": (following["terminated"] | following["truncated"]).squeeze(-1).numpy(),
        "next.terminated": following["terminated"].squeeze(-1).numpy(),
        "next.observation.state": following["observation"].numpy(),
        "timestamp": (frame / fps).astype(np.float32),
        _FRAME: frame,
        _EPISODE: np.repeat(np.arange(len(lengths)), lengths),
        _INDEX: np.arange(len(data)),
        _TASK: np.repeat(task, lengths),
    }
    if ("next", "success") in data.keys(include_nested=True):
        columns["next.success"] = following["success"].squeeze(-1).numpy()
    ends = np.cumsum(lengths)
    episodes = {
        _EPISODE: np.arange(len(lengths)),
        "tasks": [[words[i]] for i in task],
        "length": lengths,
        "data/chunk_index": np.zeros(len(lengths), np.int64),
        "data/file_index": np.zeros(len(lengths), np.int64),
        "dataset_from_index": ends - lengths,
        "dataset_to_index": ends,
        "meta/episodes/chunk_index": np.zeros(len(lengths), np.int64),
        "meta/episodes/file_index": np.zeros(len(lengths), np.int64),
    }
    info = {
        "codebase_version": VERSION,
        "robot_type": dataset.manifest.environment,
        "total_episodes": len(lengths),
        "total_frames": len(data),
        "total_tasks": len(names),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {key: _feature(column) for key, column in columns.items()},
        _FIELDS: dataset.manifest.observation_layout["fields"],
    }
    stats = {key: _stats(column) for key, column in columns.items()}

    def write(part: Path) -> None:
        for path in ("data/chunk-000", "meta/episodes/chunk-000"):
            (part / path).mkdir(parents=True)
        table = arrow.table({key: _arrow(arrow, column) for key, column in columns.items()})
        parquet.write_table(table, part / "data" / "chunk-000" / "file-000.parquet")
        parquet.write_table(
            arrow.table(episodes), part / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        )
        tasks = {_TASK: np.arange(len(words)), "task": words}
        parquet.write_table(_indexed(arrow.table(tasks)), part / _TASKS)
        (part / INFO).write_text(json.dumps(info, indent=2) + "\n")
        (part / "meta" / "stats.json").write_text(json.dumps(stats, indent=2) + "\n")

    if Path(folder).exists():
        raise ConfigError(f"{folder} is there already: name a new folder")
    write_folder_atomic(Path(folder), write)


def _arrow(arrow: Any, column: NDArray[Any]) -> Any:
    """A column, with rows of a matrix as lists of a fixed length, as LeRobot has them."""
    if column.ndim == 1:
        return arrow.array(column)
    flat = arrow.array(np.ascontiguousarray(column).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _indexed(table: Any) -> Any:
    """A table whose column ``task`` is the index of pandas, which LeRobot reads it with."""
    about = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type,
             "metadata": None}
            for name, kind, numpy_type in ((_TASK, "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }  # fmt: skip
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _feature(column: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": str(column.dtype), "shape": [*column.shape[1:]] or [1], "names": None}


def _stats(column: NDArray[Any]) -> dict[str, Any]:
    rows = column.astype(np.float64).reshape(len(column), -1)
    found: dict[str, Sequence[float]] = {
        "min": rows.min(0).tolist(),
        "max": rows.max(0).tolist(),
        "mean": rows.mean(0).tolist(),
        "std": rows.std(0).tolist(),
        "count": [len(rows)],
    }
    return found
