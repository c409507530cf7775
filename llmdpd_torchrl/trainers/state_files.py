"""States as safetensors and JSON, for TorchRL's checkpoints: nothing is pickled or unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchrl.checkpoint import CheckpointAdapter

from llmdpd_torchrl.utils.files import write_tensors, write_text

__all__ = ["StateFilesAdapter", "decode_state", "encode_state"]


class StateFilesAdapter(CheckpointAdapter):
    """Save what has ``state_dict`` and ``load_state_dict`` as two files.

    ``state.safetensors`` holds the tensors, ``state.json`` everything else. TorchRL's own adapters
    load through tensordict, which unpickles a ``*.pickle`` that lies in its tree, or through
    ``torch.load``; what is read here can hold numbers, strings and containers, and no code.

    Examples:
        >>> import tempfile
        >>> from torchrl.checkpoint import Checkpoint
        >>> source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> folder = tempfile.mkdtemp() + "/checkpoint"
        >>> adapter = StateFilesAdapter()
        >>> _ = Checkpoint().register("layer", source, adapter=adapter).save(folder)
        >>> Checkpoint().register("layer", target, adapter=adapter).load(folder).loaded
        {'layer'}
        >>> bool((source.weight == target.weight).all())
        True
    """

    adapter_id = "llmdpd.state_files"
    format_version = 1

    def save(
        self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Write the component's state into the folder ``path``, which is made."""
        tensors: dict[str, torch.Tensor] = {}
        tree = encode_state(component.state_dict(*args, **kwargs), tensors)
        path.mkdir(parents=True)
        write_tensors(path / "state.safetensors", tensors)
        write_text(path / "state.json", json.dumps(tree))

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Load what :meth:`save` wrote; the component brings tensors to its device."""
        tensors = load_file(path / "state.safetensors")
        tree = json.loads((path / "state.json").read_text(encoding="utf-8"))
        component.load_state_dict(decode_state(tree, tensors), *args, **kwargs)


def encode_state(value: Any, tensors: dict[str, torch.Tensor], where: str = "state") -> Any:
    """Turn a state into what JSON holds, and put its tensors into ``tensors``.

    Args:
        value: tensors, numbers, strings, booleans and ``None`` in dictionaries, lists and tuples.
        tensors: filled with those of the state; the result names them.
        where: what ``value`` is called in a message.

    Raises:
        TypeError: naming where in the state there is anything else.

    Examples:
        >>> tensors = {}
        >>> encode_state({0: torch.ones(2), "lr": (1, None)}, tensors)
        {'dict': [[0, {'tensor': '0'}], ['lr', {'tuple': [1, None]}]]}
        >>> tensors["0"].tolist()
        [1.0, 1.0]
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (int, str):
                raise TypeError(f"{where}: a key of type {type(key).__name__} can not be saved")
        return {
            "dict": [
                [key, encode_state(item, tensors, f"{where}[{key!r}]")]
                for key, item in value.items()
            ]
        }
    if type(value) in (list, tuple):
        items = [encode_state(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"tuple": items} if type(value) is tuple else items
    raise TypeError(f"{where}: a value of type {type(value).__name__} can not be saved")


def decode_state(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo :func:`encode_state`.

    Examples:
        >>> decode_state({"dict": [[0, {"tuple": [1, None]}]]}, {})
        {0: (1, None)}
    """
    if isinstance(tree, list):
        return [decode_state(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(decode_state(item, tensors) for item in content)
    return {key: decode_state(item, tensors) for key, item in content}
