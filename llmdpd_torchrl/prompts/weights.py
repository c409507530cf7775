"""The weights of a model folder: which they are, and whether the memory holds them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from llmdpd_torchrl.utils.errors import PromptError
from llmdpd_torchrl.utils.files import file_sha256

__all__ = ["check_memory", "folder_sha256"]

_WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "vocab*", "merges.txt")


def folder_sha256(folder: Path) -> str:
    """Hash weights, config and tokenizer, by name and content, whatever the folder is called."""
    files = sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def check_memory(
    name: str, kind: Any, config: Any, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare the weights' bytes with the free memory, before half an hour of swapping."""
    free = _free_memory(device)
    if free is None:
        return
    with torch.device("meta"):
        skeleton = kind.from_config(config, dtype=dtype)
    needed = sum(p.numel() * p.element_size() for p in skeleton.parameters())
    if needed > free:
        raise PromptError(
            f"{name} needs {needed / 1e9:.1f} GB for its weights and {device} has "
            f"{free / 1e9:.1f} GB free: use a smaller model such as 'smollm2', or bfloat16"
        )


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes of ``device``, or ``None`` where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    return None if found is None else int(found[1]) * 1024
