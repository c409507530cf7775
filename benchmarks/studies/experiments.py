"""Hydra experiments, ``configs/experiment/STUDY/VARIANT.yaml``, made of the studies' definitions.

``llmdpd train +experiment=STUDY/VARIANT`` trains a variant and evaluates it as any other run; the
study's own command evaluates its arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from benchmarks.studies.registry import Study, Variant
from llmdpd_torchrl.experiments.command import config_folder
from llmdpd_torchrl.utils.files import write_text

FOLDER = config_folder() / "experiment"


def experiments(studies: Mapping[str, Study]) -> dict[str, str]:
    """The files' texts, by their paths: of what is trained without a file of the user's."""
    return {
        f"{study.name}/{variant.base}.yaml": _text(study, variant)
        for study in studies.values()
        for variant in study.variants
        if variant.policy == "trained" and not any("{data}" in s for s in variant.settings)
    }


def write(studies: Mapping[str, Study], folder: Path = FOLDER) -> int:
    """Write all files, remove those of variants that are no more, and return their number."""
    texts = experiments(studies)
    for path in folder.glob("*/*.yaml"):
        if path.relative_to(folder).as_posix() not in texts:
            path.unlink()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    return len(texts)


def _text(study: Study, variant: Variant) -> str:
    groups, values = {}, OmegaConf.create()
    settings = variant.settings[:-1] if variant.fold else variant.settings  # it is chosen beside it
    for override in OverridesParser.create().parse_overrides(list(settings)):
        if (config_folder() / override.key_or_group).is_dir():
            groups[override.key_or_group] = override.value()
        else:
            OmegaConf.update(values, override.key_or_group, override.value())
    content = OmegaConf.create({"defaults": [{f"override /{k}": v} for k, v in groups.items()]})
    return (
        "# @package _global_\n"
        f"# {study.title}: {variant.label}.\n"
        "# Written by python -m benchmarks.studies --experiments\n"
        f"{OmegaConf.to_yaml(OmegaConf.merge(content, values))}"
    )
