"""The last steps of an episode, for a policy that reads sequences."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, expand_as_right
from torch import Tensor, nn
from torchrl.data import Categorical, TensorSpec, Unbounded

from llmdpd_torchrl.data.dataset import TrajectoryDataset, returns_to_go
from llmdpd_torchrl.transforms.prompts import PromptTransform
from llmdpd_torchrl.utils.errors import ConfigError, DataError


class HistoryTransform(PromptTransform):
    """Write the last H steps, the present one at the end; of a dataset also the next F actions.

    On an environment the steps are carried in the TensorDict, so that sub-environments may be reset
    or paused one by one. On a replay buffer they are gathered from the dataset by the transition's
    ``trajectory_id`` and ``step_count``. For one and the same episode both write the same; where
    the episode has fewer steps, the first entries are zero and masked.

    Written under ``"history"``: ``observation`` [*, H, O]; ``action`` [*, H, A], the last of which
    is zero, because it is to be chosen; ``mask`` [*, H] (bool); and ``return_to_go`` [*, H, 1], the
    rewards from each step to the end. While acting these are not known: the first is the target,
    ``target_return``, from which each reward is subtracted.

    Written under ``"future"``, on a replay buffer if F > 0: ``action`` [*, F, A], the present one
    first, and ``mask`` [*, F]: after the episode's end actions are zero and masked.

    With ``labels``, history and future of a replay buffer also have ``expert_action``, what the
    expert wanted at the same steps, the present one included: targets to imitate, beside the
    executed actions.

    Args:
        steps: H, at least 1.
        observation_dim: O.
        action_dim: A.
        horizon: F.
        target_return: the first return-to-go while acting. ``None``: that of the demonstration,
            the first entry of ``("prompt", "trajectory", "return_to_go")`` [*, L, 1], so a
            :class:`TrajectoryPromptTransform` in mode ``"tensor"`` comes before.
        dataset: that the replay buffer holds; without it there is none to sample from.
        labels: whether losses imitate ``expert_action``, which the dataset then has.
        in_keys: default ``["observation", "action", "reward"]``, read while acting only. Rewards
            must not have been scaled.

    Raises:
        ConfigError: if a number is out of range, or on a replay buffer without a dataset.
        DataError: if the dataset has no ``expert_action`` though ``labels``; while acting, if there
            is no demonstration to take the target from.

    Examples:
        >>> from tensordict import TensorDict
        >>> transform = HistoryTransform(2, 1, 1, target_return=5.0)
        >>> state = transform._reset(None, TensorDict({"observation": torch.tensor([7.0])}))
        >>> state["history", "mask"].tolist(), state["history", "return_to_go"].tolist()
        ([False, True], [[0.0], [5.0]])
        >>> after = TensorDict({"observation": torch.tensor([8.0]), "reward": torch.ones(1)})
        >>> after = transform._step(state.set("action", torch.tensor([0.5])), after)
        >>> after["history", "observation"].tolist(), after["history", "action"].tolist()
        ([[7.0], [8.0]], [[0.5], [0.0]])
    """

    def __init__(
        self,
        steps: int,
        observation_dim: int,
        action_dim: int,
        *,
        horizon: int = 0,
        target_return: float | None = None,
        dataset: TrajectoryDataset | None = None,
        labels: bool = False,
        in_keys: list[NestedKey] | None = None,
    ) -> None:
        if steps < 1 or horizon < 0:
            raise ConfigError(
                f"a history of {steps} steps and a future of {horizon}: use at least 1 and 0"
            )
        self._sizes: dict[NestedKey, tuple[int, ...]] = {
            ("history", "observation"): (steps, observation_dim),
            ("history", "action"): (steps, action_dim),
            ("history", "return_to_go"): (steps, 1),
            ("history", "mask"): (steps,),
        }
        super().__init__(
            in_keys=in_keys or ["observation", "action", "reward"], out_keys=list(self._sizes)
        )
        self.steps, self.horizon, self.target_return = steps, horizon, target_return
        self._actions = ("action", "expert_action") if labels else ("action",)
        self._source = None if dataset is None else _Source(dataset, self._actions)

    def _prompt(self, tensordict: TensorDictBase, *, sampling: bool) -> dict[NestedKey, Tensor]:
        return self._recorded(tensordict) if sampling else self._first(tensordict)

    def _recorded(self, batch: TensorDictBase) -> dict[NestedKey, Tensor]:
        """History and future of a sampled batch ``[B]``."""
        if self._source is None:
            raise ConfigError(
                "a HistoryTransform without a dataset cannot find a sampled transition's "
                "neighbours: give it the dataset that the replay buffer holds"
            )
        place = batch.get("trajectory_id").squeeze(-1), batch.get("step_count").squeeze(-1)
        names = ("observation", *self._actions, "return_to_go")
        history = self._source.gather(names, *place, range(1 - self.steps, 1))
        history["action"][..., -1, :] = 0.0
        found: dict[NestedKey, Tensor] = {("history", k): value for k, value in history.items()}
        if self.horizon:
            future = self._source.gather(self._actions, *place, range(self.horizon))
            found |= {("future", k): value for k, value in future.items()}
        return found

    def _first(self, state: TensorDictBase) -> dict[NestedKey, Tensor]:
        """The history of the first step of an episode."""
        observation = state.get(self.in_keys[0])
        shape = observation.shape[:-1]
        present = {
            "observation": observation,
            "return_to_go": self._target(state, observation),
            "mask": torch.ones(shape, dtype=torch.bool, device=observation.device),
        }
        found: dict[NestedKey, Tensor] = {}
        for key, size in self._sizes.items():
            value = observation.new_zeros((*shape, *size))
            if key[-1] == "mask":
                value = value.bool()
            if key[-1] in present:
                value.select(len(shape), -1).copy_(present[key[-1]])
            found[key] = value
        return found

    def _target(self, state: TensorDictBase, like: Tensor) -> Tensor:
        """The target return at the first step, [*, 1]."""
        if self.target_return is not None:
            return like.new_full((*like.shape[:-1], 1), self.target_return)
        to_go = state.get(("prompt", "trajectory", "return_to_go"), None)
        if to_go is None:
            raise DataError(
                "there is no ('prompt', 'trajectory', 'return_to_go') to take the target return "
                "from: put a TrajectoryPromptTransform(mode='tensor') first, or set target_return"
            )
        return to_go[..., 0, :]

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        observation_key, action_key, reward_key = self.in_keys
        before = {key: tensordict.get(key) for key in self._sizes}
        action = before["history", "action"].clone()
        action[..., -1, :] = tensordict.get(action_key)
        to_go = before["history", "return_to_go"]
        present = {
            "observation": next_tensordict.get(observation_key),
            "action": torch.zeros_like(action[..., 0, :]),
            "return_to_go": to_go[..., -1, :] - next_tensordict.get(reward_key),
            "mask": torch.ones_like(before["history", "mask"][..., 0]),
        }
        stands = tensordict.get("_step", None)
        for key, old in before.items():
            axis = len(tensordict.batch_size)
            previous = (action if key[-1] == "action" else old).narrow(axis, 1, self.steps - 1)
            value = torch.cat([previous, present[key[-1]].unsqueeze(axis)], dim=axis)
            if stands is not None:
                moves = expand_as_right(stands.reshape(tensordict.batch_size), value)
                value = torch.where(moves, value, old)
            next_tensordict.set(key, value)
        return next_tensordict

    def _specs(self, shape: torch.Size) -> dict[NestedKey, TensorSpec]:
        specs: dict[NestedKey, TensorSpec] = {}
        for key, size in self._sizes.items():
            specs[key] = Unbounded((*shape, *size), dtype=torch.float32)
            if key[-1] == "mask":
                specs[key] = Categorical(2, (*shape, *size), dtype=torch.bool)
        return specs


class _Source(nn.Module):
    """Columns of a dataset, its returns-to-go and the places of its episodes.

    They are non-persistent buffers: they follow ``.to()`` and enter no ``state_dict``.
    """

    starts: Tensor
    lengths: Tensor

    def __init__(self, dataset: TrajectoryDataset, actions: tuple[str, ...]) -> None:
        super().__init__()
        transitions = dataset.transitions
        if missing := {*actions} - {*transitions.keys()}:
            raise DataError(
                f"the dataset has no {', '.join(missing)}: imitate executed actions "
                "(labels=False), or collect the data again"
            )
        columns = {
            "starts": dataset.starts,
            "lengths": dataset.lengths,
            "observation": transitions["observation"],
            **{name: transitions[name] for name in actions},
            "return_to_go": returns_to_go(transitions["next", "reward"], dataset.lengths),
        }
        for name, value in columns.items():
            self.register_buffer(name, value, persistent=False)

    def gather(
        self, names: tuple[str, ...], episode: Tensor, step: Tensor, offsets: range
    ) -> dict[str, Tensor]:
        """Columns [B, n, ...] at ``offsets`` [n] from steps [B] of episodes [B], and their mask."""
        device, home = step.device, self.starts.device
        episode, step = episode.to(home), step.to(home)
        last = self.lengths[episode] - 1
        wanted = step.unsqueeze(-1) + torch.arange(offsets.start, offsets.stop, device=home)
        mask = (wanted >= 0) & (wanted <= last.unsqueeze(-1))
        rows = self.starts[episode].unsqueeze(-1) + wanted.clamp_min(0).minimum(last.unsqueeze(-1))
        found = {name: self.get_buffer(name)[rows] * mask.unsqueeze(-1) for name in names}
        return {name: value.to(device) for name, value in (found | {"mask": mask}).items()}
