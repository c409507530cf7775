"""``llmdpd info``: versions, devices, rendering and folders, for a report of a problem."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from llmdpd_torchrl.utils.errors import run_command_line

PACKAGES = (
    "llmdpd_torchrl", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "metaworld", "mujoco",
    "transformers", "hydra-core", "minari", "ray", "wandb", "tensorboard", "trackio", "mlflow",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="llmdpd info",
        description="Show versions, devices, whether videos can be rendered, and folders, for a "
        "report of a problem for example. Finding the renderer takes some seconds.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    found = collect_info()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, values in found.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:16}{'none' if value is None else value}")
    return 0


def collect_info() -> dict[str, dict[str, Any]]:
    """Everything that the command shows, by section."""
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "machine": _machine(),
        "rendering": _rendering(),
        "folders": _folders(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    from llmdpd_torchrl.utils.processes import available_cores

    memory = psutil.virtual_memory()
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "CPU cores": available_cores(),
        "memory": f"{_size(memory.available)} of {_size(memory.total)} available",
        "CUDA devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }
    for index in range(found["CUDA devices"]):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {_size(properties.total_memory)}"
    return found


def _rendering() -> dict[str, Any]:
    if importlib.util.find_spec("mujoco") is None:
        return {"backend": None, "problem": "no simulator: MuJoCo is not installed"}
    from llmdpd_torchrl.evaluation.video import rendering_backend

    backend, problem = rendering_backend()
    return {"backend": backend} | ({"problem": problem} if problem else {})


def _folders() -> dict[str, Any]:
    from huggingface_hub import constants

    from llmdpd_torchrl.evaluation.results import git_revision
    from llmdpd_torchrl.utils.cache import cache_root, used_bytes

    cache = cache_root()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = _size(shutil.disk_usage(there).free)
    return {
        "cache": f"{cache} ({_size(used_bytes(cache))}, {free} free)",
        "LLMDPD_CACHE": os.environ.get("LLMDPD_CACHE"),
        "Hugging Face": str(constants.HF_HUB_CACHE),
        "git revision": git_revision(),
    }


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
