"""Every way into the library, called in this process: what it is given, and what came out.

A case of ``bad_inputs.py`` names one of ``ENTRIES``; this is the only place that knows how each is
called.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import h5py
import numpy as np

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.commands import check_env as check_env_main
from llmdpd_torchrl.commands import data as data_main
from llmdpd_torchrl.commands import eval as eval_main
from llmdpd_torchrl.commands import prompts as prompts_main
from llmdpd_torchrl.commands import report as report_main
from llmdpd_torchrl.commands import video as video_main
from llmdpd_torchrl.data import TrajectoryDataset, load_episodes
from llmdpd_torchrl.evaluation import EpisodeResult, summarise
from llmdpd_torchrl.evaluation.results import write_results_json
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import load_text_prompts
from llmdpd_torchrl.trainers import find_checkpoint, make_logger
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import UserError
from tests.reliability import short_training

__all__ = ["ENTRIES", "Outcome", "call", "damage"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Outcome:
    """What a person at the keyboard would see.

    Attributes:
        code: the exit code.
        text: on stderr.
    """

    code: int
    text: str

    @property
    def error_lines(self) -> list[str]:
        """The lines that say what is wrong; argparse prints the usage before its own."""
        return [line for line in self.text.splitlines() if "error: " in line]

    @property
    def is_clear(self) -> bool:
        """Whether it failed, with one line, and no traceback."""
        return self.code != 0 and "Traceback" not in self.text and len(self.error_lines) == 1

    def says(self, word: str) -> bool:
        """Whether it is clear, and the line has that word."""
        return self.is_clear and word in self.error_lines[0]


def call(entry: str, given: Any) -> Outcome:
    """Give something to an entry, in a folder of its own."""
    errors = io.StringIO()
    code: Any = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        _inside(folder),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            code = ENTRIES[entry](Path(folder), given)
        except SystemExit as stop:
            code = stop.code
        except UserError as error:  # as the command lines do
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except Exception:
            traceback.print_exc()
            code = 1
    return Outcome(code if isinstance(code, int) else 0, errors.getvalue())


def damage(folder: Path, file: str, change: Any) -> None:
    """Change a file: ``None`` removes it, a number cuts it to so many bytes, bytes and text replace
    it, a dictionary replaces values of its JSON object (by the path of their keys, with dots)."""
    path = folder / file
    if change is None:
        path.unlink()
    elif isinstance(change, int):
        path.write_bytes(path.read_bytes()[:change])
    elif isinstance(change, bytes):
        path.write_bytes(change)
    elif isinstance(change, str):
        path.write_text(change)
    else:
        content = json.loads(path.read_text())
        for keys, value in change.items():
            *parents, last = keys.split(".")
            inner = content
            for key in parents:
                inner = inner[key]
            inner[last] = value
        path.write_text(json.dumps(content))


# --- what is damaged, made once -----------------------------------------------------------------


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _copy(name: str, make: Callable[[Path], Any], to: Path) -> Path:
    """A copy of something that is made at its first use."""
    source = Path(_made().name) / name
    if not source.exists():
        make(source)
    shutil.copytree(source, to / name)
    return to / name


def _make_dataset(folder: Path) -> None:
    settings = CollectionSettings(episodes_per_task=2, max_steps=4)
    collect_metaworld(folder, ["reach-v3"], settings, workers=1, progress=False)


def _make_policy(folder: Path) -> None:
    config = NetworkConfig(prompt="text", text_dim=8, hidden=[8])
    LLMDPDPolicy.from_networks(config, make_networks(config)).save_pretrained(folder)


def _make_policies(folder: Path) -> None:
    """One for each of the prompts."""
    for prompt in ("none", "text", "trajectory"):
        config = NetworkConfig(prompt=prompt, text_dim=576, trajectory_length=4, hidden=[8])
        info = {"trained_tasks": ["reach-v3"], "text_encoder": "smollm2"}
        policy = LLMDPDPolicy.from_networks(config, make_networks(config), info)
        policy.save_pretrained(folder / prompt)


def _make_training(folder: Path) -> None:
    short_training.train(folder, updates=20, keep=1)


def _make_results(folder: Path) -> None:
    folder.mkdir()
    episodes = [EpisodeResult("reach-v3", goal, True, False, 1.0, 5) for goal in range(2)]
    summary = summarise(episodes, ["reach-v3"], [])
    extra = {"name": "a-seed0", "seed": 0, "episodes": [vars(episode) for episode in episodes]}
    write_results_json(folder / "results.json", summary, extra)


def _hdf5_arrays() -> dict[str, np.ndarray]:
    return {
        "observations": np.zeros((6, 3), np.float32),
        "next_observations": np.zeros((6, 3), np.float32),
        "actions": np.zeros((6, 2), np.float32),
        "rewards": np.zeros(6, np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 1], bool),
        "timeouts": np.zeros(6, bool),
    }


# --- the entries --------------------------------------------------------------------------------


@functools.cache
def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # hydra looks its functions' module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _train(name: str) -> Callable[[Path, Any], Any]:
    def run(folder: Path, given: Sequence[str]) -> Any:
        # What is not refused would stop after the first stage, which does nothing without a text.
        settings = [f"output_dir={folder}/out", "progress=false", "prompt=none", "until=embed"]
        names = {item.split("=")[0].lstrip("+~") for item in given}
        kept = [item for item in settings if item.split("=")[0] not in names]
        with mock.patch.object(sys, "argv", [f"{name}.py", *kept, *given]):
            return _example(name).main()

    return run


def _command(module: ModuleType) -> Callable[[Path, Any], Any]:
    def run(folder: Path, given: Any) -> Any:
        arguments, files = given if isinstance(given, tuple) else (given, {})
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return module.main(list(arguments))

    return run


def _saved_policy(module: ModuleType) -> Callable[[Path, Any], Any]:
    """A command on ``policies/PROMPT``, beside episodes of reach-v3 in ``dataset``."""

    def run(folder: Path, given: Sequence[str]) -> Any:
        _copy("dataset", _make_dataset, folder)
        _copy("policies", _make_policies, folder)
        return module.main([*given, "--device", "cpu"] if "--device" not in given else [*given])

    return run


def _dataset(folder: Path, given: Any) -> None:
    where = _copy("dataset", _make_dataset, folder)
    if isinstance(given, list):
        TrajectoryDataset.load(where, given)
    else:
        damage(where, *given)
        TrajectoryDataset.load(where)


def _policy(folder: Path, given: Any) -> None:
    where = _copy("policy", _make_policy, folder)
    damage(where, *given)
    LLMDPDPolicy.from_pretrained(where)


def _checkpoint(folder: Path, given: Any) -> None:
    where = _copy("training", _make_training, folder) / "checkpoints"
    if isinstance(given, dict):
        find_checkpoint(where, given)
    else:
        damage(where / "checkpoint-000000000020", *given)
        find_checkpoint(where)


def _training(folder: Path, given: Any) -> None:
    where = _copy("training", _make_training, folder)
    short_training.train(where, **{"updates": 20, **given})


def _results(folder: Path, given: Any) -> Any:
    where = _copy("results", _make_results, folder)
    damage(where, *given)
    return report_main.main([str(where)])


def _hdf5(folder: Path, given: Any) -> None:
    path = folder / "data.hdf5"
    if isinstance(given, bytes):
        path.write_bytes(given)
        load_episodes(path)
        return
    changes, options = given if isinstance(given, tuple) else (given, {})
    with h5py.File(path, "w") as file:
        for key, value in {**_hdf5_arrays(), **changes}.items():
            if value is not None:
                file[key] = value
    load_episodes(path, **options)


def _prompt_file(folder: Path, given: str | bytes) -> None:
    path = folder / "prompts.yaml"
    path.write_bytes(given if isinstance(given, bytes) else given.encode())
    load_text_prompts(path)


def _metrics(folder: Path, given: str) -> None:
    (folder / "metrics.csv").write_text(given)
    read_metrics(folder / "metrics.csv")


def _logger(folder: Path, given: dict[str, Any]) -> None:
    (folder / "file").write_text("")
    (folder / "used").mkdir()
    (folder / "used" / "metrics.csv").write_text("step,loss\n1,2.0\n")
    make_logger(**{"kind": "csv", "directory": folder / "new", "name": "a", "config": {}, **given})


ENTRIES: dict[str, Callable[[Path, Any], Any]] = {
    "check_env": _command(check_env_main),
    "checkpoint": _checkpoint,
    "data": _command(data_main),
    "dataset": _dataset,
    "episodes": lambda folder, given: load_episodes(given),
    "eval": _saved_policy(eval_main),
    "evaluation": _command(report_main),
    "hdf5": _hdf5,
    "logger": _logger,
    "metrics": _metrics,
    "policy": _policy,
    "prompt file": _prompt_file,
    "prompts": _command(prompts_main),
    "results": _results,
    "train": _train("train_metaworld"),
    "train_d4rl": _train("train_d4rl"),
    "training": _training,
    "video": _saved_policy(video_main),
}
