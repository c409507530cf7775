"""The folds that a study is run on: names of splits, or of groups of them."""

from __future__ import annotations

from collections.abc import Sequence

from llmdpd_torchrl.tasks import FOLDS
from llmdpd_torchrl.utils.errors import ConfigError


def chosen_folds(names: Sequence[str]) -> tuple[str, ...]:
    """Folds by their names or those of their groups, without the ``fold_`` of the splits.

    Raises:
        ConfigError: if there is no such fold or group.
    """
    groups = {g: tuple(f.removeprefix("fold_") for f in folds) for g, folds in FOLDS.items()}
    known = groups | {fold: (fold,) for folds in groups.values() for fold in folds}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"folds has {unknown[0]!r}: use some of {', '.join(known)}")
    return tuple(dict.fromkeys(fold for name in names for fold in known[name]))
