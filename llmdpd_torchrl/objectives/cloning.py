"""Denoising behaviour cloning, the first half of the method's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey, _unravel_key_to_tuple, expand_as_right
from torch import Tensor, nn
from torchrl.objectives import LossModule

from llmdpd_torchrl.utils.errors import ConfigError, DataError

REDUCTIONS = ("none", "mean", "sum")


class DiffusionCloning(LossModule):
    r"""Prompt-conditioned diffusion behaviour cloning: L_d alone, without rewards and critics.

    .. math:: L_d = E_{k, \epsilon, (s, a)} \|\epsilon - \epsilon_\theta(a_k, k, s, z)\|^2

    The squared norm is averaged over the action's dimensions. It imitates another action than the
    executed one after ``set_keys(expert_action=...)``.

    Args:
        prompt_network (TensorDictModule or None): makes z. ``None``: no prompt, or z in the data.
        actor_network (TensorDictModule): a :class:`~llmdpd_torchrl.modules.DiffusionActor`.

    Keyword Args:
        reduction (str): ``"none"`` | ``"mean"`` (default) | ``"sum"``.

    ``priority_weight``, where given, weighs the rows. Entries are cast to the networks' precision.
    Values are not checked, which would wait for the device.

    Raises:
        ConfigError: on an unknown reduction.
        TypeError: if the actor is another (``DiffusionActor.from_torchrl`` adapts TorchRL's).
        DataError: if the batch lacks a key or an entry has a wrong shape.

    Examples:
        >>> from llmdpd_torchrl.modules import DiffusionActor
        >>> loss = DiffusionCloning(None, DiffusionActor(2, 3, in_keys=["observation"]))
        >>> data = TensorDict({"observation": torch.randn(4, 3), "action": torch.zeros(4, 2)}, [4])
        >>> sorted(loss(data).keys())
        ['bc', 'loss_actor']
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"
        expert_action: NestedKey | None = None  # what L_d imitates; by default the executed action
        prompt: NestedKey = "prompt"  # root of the raw prompt, which like z has no successor
        prompt_embedding: NestedKey = "prompt_embedding"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: Any
    default_keys: Any = _AcceptedKeys
    out_keys = ["loss_actor", "bc"]  # noqa: RUF012
    reads_successors = False  # a loss that does has targets, too, and sets its in_keys itself
    prompt_network: TensorDictModule | None
    prompt_network_params: TensorDictParams
    target_prompt_network_params: TensorDictParams
    actor_network: Any  # its module is a diffusion
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        prompt_network: TensorDictModule | None,
        actor_network: TensorDictModule,
        *,
        reduction: Literal["none", "mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.reduction = reduction
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction is {reduction!r}: use {' or '.join(REDUCTIONS)}")
        if not hasattr(getattr(actor_network, "module", None), "predict_clean"):
            raise TypeError("actor_network must be a DiffusionActor, or made by its from_torchrl()")
        self.prompt_network = None
        if prompt_network is not None:
            self.convert_to_functional(prompt_network, "prompt_network")
        self.convert_to_functional(
            actor_network, "actor_network", create_target_params=self.reads_successors
        )
        if not self.reads_successors:
            self._set_in_keys()

    def _set_in_keys(self) -> None:
        states = dict.fromkeys(self.actor_network.in_keys)
        self.in_keys = self._set_root_keys(states)

    def _set_root_keys(self, states: dict[NestedKey, None]) -> list[NestedKey]:
        """Note what is read of a step, where its networks read ``states``."""
        keys, prompt = self.tensor_keys, self.prompt_network
        made, raw = ([], []) if prompt is None else (prompt.out_keys, prompt.in_keys)
        self._imitated = keys.expert_action or keys.action
        path = _unravel_key_to_tuple
        roots = [path(key) for key in (keys.prompt, keys.prompt_embedding, *made)]
        self._prompt_keys = [k for k in states if any(path(k)[: len(r)] == r for r in roots)]
        root = dict.fromkeys([keys.action, self._imitated, *states, *raw])
        self._root_keys = [key for key in root if key not in made]
        size = self.actor_network.module.action_dim
        self._widths = dict.fromkeys([keys.action, self._imitated], size)
        self._flag_keys: list[NestedKey] = []
        return self._root_keys

    def diffusion_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """L_d alone, reduced, and the detached ``bc``."""
        data = self._prepare(tensordict, self._root_keys)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            loss = self._reduce(self._denoise(data)[-1], data)
        return loss, {"bc": loss.detach()}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss; see ``in_keys`` and ``out_keys``."""
        loss, metadata = self.diffusion_loss(tensordict)
        return TensorDict({"loss_actor": loss, **metadata})

    def _denoise(self, data: TensorDictBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps k, noisy actions, the denoiser's output, and its squared error to be reduced."""
        process, action = self.actor_network.module, data.get(self._imitated)
        step = torch.randint(0, process.num_steps, action.shape[:-1], device=action.device)
        noisy, noise = process.add_noise(action, step)
        output = process.denoise(noisy, self._condition(data), step)
        target = process.target(action, noise, step)
        error = nn.functional.mse_loss(output, target, reduction="none")
        return step, noisy, output, error if self.reduction == "mean" else error.mean(-1)

    def _prepare(self, tensordict: TensorDictBase, keys: list[NestedKey]) -> TensorDictBase:
        """A shallow copy of the batch, checked and cast to the networks' precision, with z."""
        data, prompt, rows = tensordict.copy(), self.prompt_network, torch.Size()
        dtype = next(self.actor_network_params.parameters()).dtype
        for key in keys:  # of which the action comes first
            value, width = data.get(key, None), self._widths.get(key)
            if value is None and (prompt is None or key not in prompt.in_keys):
                raise DataError(f"the batch has no {key!r}: add it, or rename it with set_keys")
            rows = value.shape[:-1] if key == self.tensor_keys.action else rows
            if width and value.shape != (*rows, width):  # a reward [B] would broadcast to [B, B]
                raise DataError(f"{key!r} has shape {[*value.shape]}: use {[*rows, width]}")
            if width or (isinstance(value, Tensor) and value.is_floating_point()):
                data.set(key, value.to(torch.bool if key in self._flag_keys else dtype))
        if prompt is not None:
            with self.prompt_network_params.to_module(prompt, preserve_module_state=False):
                data = prompt(data)
        return data

    def _condition(self, data: TensorDictBase) -> Tensor:
        return self.actor_network.module.condition(*map(data.get, self.actor_network.in_keys))

    def _reduce(self, values: Tensor, data: TensorDictBase) -> Tensor:
        weights = self._maybe_get_priority_weight(data)
        weights = None if weights is None else expand_as_right(weights, values)
        return self._reduce_loss(values, data, weights=weights)
