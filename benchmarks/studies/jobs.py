"""The policies of a study, one by one, and where their data and results are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benchmarks.studies.folds import chosen_folds
from benchmarks.studies.registry import Arm, Study, Variant
from benchmarks.studies.store import Store
from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.locomotion import Locomotion
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.utils.errors import ConfigError

#: By family: the name of the configuration, its class, and settings that name the data.
FAMILIES: dict[str, Any] = {
    "metaworld": ("train_metaworld", MetaWorld, ("data.folder={data}",)),
    "locomotion": ("train_d4rl", Locomotion, ()),
}


@dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
        store: the stored files.
        data: replaces ``{data}`` in settings: a folder, or a file of recorded episodes; ``None``:
            collected data are in the user's cache.
        output: the folder of the trainings.
        workers: processes of evaluations; ``None``: one a core.
    """

    store: Store
    data: Path | None
    output: Path
    workers: int | None = None


@dataclass(frozen=True)
class Job:
    """One policy of a study: a variant with a seed, and the arms to evaluate; none: all."""

    study: Study
    variant: Variant
    seed: int
    arms: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder and of its stored files."""
        return f"{self.variant.name}-seed{self.seed}"

    def folder(self, place: Place) -> Path:
        """The folder of its training; names are unique within the study's folder."""
        shared = self.study.folder == "runs"
        return (place.output if shared else place.output / self.study.folder) / self.name

    def missing(self, store: Store) -> list[Arm]:
        """The arms that are still to be evaluated."""
        missing = store.missing(self.study, self.variant, self.seed)
        return [arm for arm in missing if not self.arms or arm.name in self.arms]

    def read(self, place: Place) -> DictConfig:
        """Its configuration, as the command line of a training makes it.

        Raises:
            ConfigError: if there is no such setting.
        """
        name, _, data = FAMILIES[self.study.family]
        about_data = [*data, *self.variant.settings]
        if place.data is None:
            about_data = [s for s in about_data if not s.startswith("data.folder={data}")]
        settings = [
            *(_with_path(setting, place.data or Path("data")) for setting in about_data),
            f"name={self.name}",
            _with_path("output_dir={data}", self.folder(place)),
            f"seed={self.seed}",
            f"evaluation.workers={place.workers or 'null'}",
        ]
        if self.variant.fold:
            names = ("seed", "demonstration_number")
            settings += [f"evaluation.{name}={self.seed}" for name in names]
        return compose_settings(name, settings)

    def command(self) -> str:
        """The command that makes this policy and evaluates its arms."""
        fold = f" folds=[{self.variant.fold}]" if self.variant.fold else ""
        return (
            f"python -m benchmarks.studies {self.study.name} "
            f"variants=[{self.variant.base}]{fold} seeds=[{self.seed}]"
        )


def _with_path(setting: str, path: Path) -> str:
    """A setting with a path for ``{data}``; a text is quoted for what the path may hold."""
    key, _, value = setting.partition("=")
    if "{data}" not in value:
        return setting
    quoted = value.startswith("[")  # a list has its own quotation marks
    return f"{key}={value if quoted else repr(value)}".replace("{data}", str(path))


def jobs(
    study: Study,
    variants: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[str] = (),
    arms: Sequence[str] = (),
) -> list[Job]:
    """The policies of a study, the first seed of each before the second of any.

    Args:
        study: one that the common runner runs.
        variants: names; none: all that need nothing special.
        seeds: none: the study's.
        folds: names, or groups, of those of a study with folds; none: the report's.
        arms: names; none: all.

    Raises:
        ConfigError: if there is no such variant, fold or arm.
    """
    if folds and not all(variant.fold for variant in study.variants):
        raise ConfigError(f"study {study.name} has no folds: leave folds out")
    wanted = ("", *chosen_folds(folds or ["report"]))
    known: dict[str, list[Variant]] = {}
    for variant in study.variants:
        known.setdefault(variant.base, []).append(variant)
    if unknown := [name for name in variants if name not in known]:
        raise ConfigError(
            f"study {study.name} has no variant {unknown[0]!r}: use some of {', '.join(known)}"
        )
    names = variants or [name for name, (first, *_) in known.items() if not first.needs]
    chosen = [variant for name in names for variant in known[name] if variant.fold in wanted]
    there = dict.fromkeys(arm.name for variant in chosen for arm in variant.arms)
    if unknown := [name for name in arms if name not in there]:
        raise ConfigError(f"arms has {unknown[0]!r}: use some of {', '.join(there)}")
    found = []
    for place, seed in enumerate(seeds or study.seeds):
        for variant in chosen:
            if len(study.seeds_of(variant)) == len(study.seeds):
                found.append(Job(study, variant, seed, tuple(arms)))
            elif place == 0:
                found.append(Job(study, variant, study.seeds[0], tuple(arms)))
    return found
