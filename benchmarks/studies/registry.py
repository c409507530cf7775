"""What the comparison consists of: experiments, variants, arms and claims, read from YAML files.

An experiment (``definitions/NAME.yaml``):

    title, question: what it is called, what it asks
    of_the_paper: what of the paper it tests
    preset, overrides, seeds: what all its variants have in common
    episodes, seen_episodes: of each unseen and each seen task
    order: its place on the page
    reference: {variant, arm}: what the others are compared with; without variant: each its own;
        and with ``also``, a list: further variants about which the finding has a sentence
    groups: {unseen, seen}: what these are called in this experiment, if something else
    per_task: whether the page has a table of all tasks
    arms: of the variants that list none
    variants:
      NAME: {label, overrides, arms, policy, needs, reference}
      NAME: {use: the experiment that defines it, arms}

An arm is what is shown on which tasks: ``both``, ``none/seen``, or a mapping of ``control``,
``group`` and some of :data:`SHOWN`. In ``overrides``, ``{data}`` is the folder of the data. A
variant that ``needs`` something is run only if it is named. With ``script``, an experiment is of
another benchmark's, whose kept files it reads: ``SCRIPT.py``, ``results/SCRIPT/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llmdpd_torchrl.evaluation.controls import CONTROLS
from llmdpd_torchrl.utils.errors import ConfigError, first_line

GROUPS = ("unseen", "seen")
POLICIES = ("trained", "retrieve_and_play")
#: How demonstrations are shown: the setting behind each name in an arm.
SHOWN = {
    "demonstrations": "evaluation.demonstrations",
    "share": "evaluation.demonstration_share",
    "noise": "data.support_noise_levels",
    "gain": "data.support_expert_gain",
}
_EXPERIMENT = {
    "title": str, "question": str, "of_the_paper": str, "preset": str, "overrides": list,
    "episodes": int, "seen_episodes": int, "order": int, "seeds": list, "reference": dict,
    "per_task": bool, "arms": list, "variants": dict, "script": str, "measure": str, "groups": dict,
}  # fmt: skip
_VARIANT = {
    "label": str, "overrides": list, "arms": list, "policy": str, "needs": str, "use": str,
    "reference": str,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What is shown, on which tasks.

    Attributes:
        name: of the kept files; equal names are equal settings.
        group: of tasks, ``"seen"`` or ``"unseen"``.
        overrides: of the evaluation's settings.
    """

    name: str
    group: str
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Variant:
    """One policy, with any seed.

    Attributes:
        name: of the kept files; equal names are equal settings.
        label: for people.
        settings: of the training, all of them that differ from the defaults.
        arms: under which it is evaluated.
        policy: one of :data:`POLICIES`; what is not trained has one seed.
        needs: what not every machine has; empty: nothing.
        reference: the variant that it is compared with; empty: the experiment's.
    """

    name: str
    label: str
    settings: tuple[str, ...]
    arms: tuple[Arm, ...]
    policy: str = "trained"
    needs: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Experiment:
    """See the head of this file.

    Attributes:
        name: of its file.
        episodes: of each unseen and each seen task.
        reference: names of a variant, which may be empty, and of an arm.
        also: further variants about which the finding has a sentence.
        groups: what unseen and seen tasks are called.
        script: the benchmark that runs it; empty: this one.
        measure: ``"success"`` or ``"score"``.
    """

    name: str
    title: str
    question: str
    of_the_paper: str
    episodes: tuple[int, int]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    reference: tuple[str, str]
    also: tuple[str, ...] = ()
    groups: tuple[str, str] = GROUPS
    per_task: bool = False
    script: str = ""
    measure: str = "success"

    @property
    def folder(self) -> str:
        """Of the kept files, among the results."""
        return self.script or "runs"

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """What is not trained draws nothing at random: one seed is enough."""
        return self.seeds if variant.policy == "trained" else self.seeds[:1]

    def episodes_of(self, arm: Arm) -> int:
        """So many of each task."""
        return self.episodes[GROUPS.index(arm.group)]

    def name_of(self, group: str) -> str:
        """What a group of tasks is called."""
        return self.groups[GROUPS.index(group)]

    def find(self, variant: str, arm: str, group: str) -> tuple[Variant, Arm]:
        """A variant and one of its arms, by their names.

        Raises:
            ConfigError: if there is no such one.
        """
        for one in self.variants:
            for shown in one.arms:
                if (one.name, shown.name, shown.group) == (variant, arm, group):
                    return one, shown
        raise ConfigError(f"{self.name} has no arm {variant}/{arm}/{group}")


@dataclass(frozen=True)
class Test:
    """Two arms whose difference decides about a claim.

    Attributes:
        where: on what, with which policies.
        experiment: its name.
        ours: variant, arm and group that the claim says is better.
        theirs: those that it is compared with.
        margin: in points; ours may be worse by less than this.
        tasks: the ones that count; empty: all of the group.
    """

    where: str
    experiment: str
    ours: tuple[str, str, str]
    theirs: tuple[str, str, str]
    margin: float = 0.0
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What the method's paper says, and what tests it."""

    text: str
    tests: tuple[Test, ...]


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """All experiments of a folder, by name.

    Raises:
        ConfigError: with a line for every mistake in the files.
    """
    documents, mistakes = {}, []
    for path in sorted(folder.glob("*.yaml")):
        try:
            documents[path.stem] = _document(path, _EXPERIMENT)
        except ConfigError as error:
            mistakes.append(str(error))
    found = {}
    for name, document in sorted(documents.items(), key=lambda item: item[1].get("order", 99)):
        try:
            found[name] = _experiment(name, document, documents)
        except ConfigError as error:
            mistakes.append(f"{folder / name}.yaml: {error}")
    try:
        _check_names(found.values())
    except ConfigError as error:
        mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if not found:
        raise ConfigError(f"{folder}: there is no experiment in it")
    return found


def read_claims(path: Path, experiments: Mapping[str, Experiment]) -> list[Claim]:
    """The claims of a file, all of whose tests name arms that the experiments have.

    Raises:
        ConfigError: with a line for every mistake in the file.
    """
    claims, mistakes = [], []
    for entry in _document(path, {"claims": list})["claims"]:
        tests = []
        for raw in entry.get("tests", ()):
            try:
                tests.append(_test(raw, experiments))
            except ConfigError as error:
                mistakes.append(f"{path}: {entry.get('claim')!r}: {error}")
        claims.append(Claim(str(entry.get("claim")), tuple(tests)))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return claims


def _document(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A YAML file with some known keys."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can not be read ({first_line(error)})") from None
    _check_keys(document, kinds, str(path))
    return document


def _check_keys(document: Any, kinds: Mapping[str, type], where: str) -> None:
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: it must be a mapping of {', '.join(kinds)}")
    for key, value in document.items():
        if key not in kinds:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or (kinds[key] is int and isinstance(value, bool)):
            raise ConfigError(f"{where}: {key} is {value!r}: it must be a {kinds[key].__name__}")


def _experiment(name: str, document: Mapping[str, Any], documents: Mapping[str, Any]) -> Experiment:
    missing = [k for k in ("title", "question", "of_the_paper", "variants") if k not in document]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is missing")
    seeds = tuple(document.get("seeds", [0, 1, 2]))
    if not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ConfigError(f"seeds is {list(seeds)}: a list of whole numbers")
    unseen = document.get("episodes", 25)
    episodes = unseen, document.get("seen_episodes", unseen)
    if min(episodes) < 1:
        raise ConfigError(f"episodes are {episodes}: at least 1 of each task")
    measure = document.get("measure", "success")
    if measure not in ("success", "score"):
        raise ConfigError(f"measure is {measure!r}: success or score")
    variants = tuple(
        _variant(key, value, document, documents) for key, value in document["variants"].items()
    )
    reference = document.get("reference", {})
    compared = reference.get("variant", ""), reference.get("arm", "both")
    also = tuple(reference.get("also", ()))
    for other in (compared[0], *also, *(v.reference for v in variants)):
        if other and other not in document["variants"]:
            raise ConfigError(f"reference is {other!r}: none of the variants")
    groups = document.get("groups", {})
    return Experiment(
        name, document["title"], document["question"], document["of_the_paper"],
        episodes, seeds, variants, compared, also,
        (groups.get("unseen", "unseen"), groups.get("seen", "seen")),
        document.get("per_task", False), document.get("script", ""), measure,
    )  # fmt: skip


def _variant(
    name: str, raw: Any, document: Mapping[str, Any], documents: Mapping[str, Any]
) -> Variant:
    where = f"variant {name!r}"
    _check_keys(raw, _VARIANT, where)
    source = document
    if "use" in raw:
        source = documents.get(raw["use"], {})
        defined = source.get("variants", {}).get(name)
        if defined is None or "use" in defined or set(raw) - {"use", "arms"}:
            raise ConfigError(
                f"{where}: use names the experiment that defines it, beside which only arms can "
                f"be said; {raw['use']!r} does not define it"
            )
        raw = {**defined, "arms": raw.get("arms", document.get("arms", [])), "reference": ""}
    is_script = "script" in document
    arms = tuple(_arm(arm, where, is_script) for arm in raw.get("arms", document.get("arms", [])))
    if not arms or len({(arm.name, arm.group) for arm in arms}) < len(arms):
        raise ConfigError(f"{where}: give at least one arm, each once")
    policy = raw.get("policy", "trained")
    if policy not in POLICIES:
        raise ConfigError(f"{where}: policy is {policy!r}: use one of {', '.join(POLICIES)}")
    settings = [*source.get("overrides", []), *raw.get("overrides", [])]
    if not is_script:
        settings.insert(0, f"preset={source.get('preset', 'ml45')}")
    if not all(isinstance(setting, str) and "=" in setting for setting in settings):
        raise ConfigError(f"{where}: overrides are texts of the form key=value")
    return Variant(
        name, raw.get("label", name), tuple(settings), arms, policy, raw.get("needs", ""),
        raw.get("reference", ""),
    )  # fmt: skip


def _arm(raw: Any, where: str, is_script: bool) -> Arm:
    if isinstance(raw, str):
        control, _, group = raw.partition("/")
        raw = {"control": control, "group": group or "unseen"}
    if not isinstance(raw, dict) or set(raw) - {"control", "group", *SHOWN}:
        raise ConfigError(f"{where}: an arm is of control, group, {', '.join(SHOWN)}, not {raw!r}")
    control, group = raw.get("control", "both"), raw.get("group", "unseen")
    if group not in GROUPS:
        raise ConfigError(f"{where}: {group!r} is no group of tasks: use {' or '.join(GROUPS)}")
    if is_script:
        return Arm(control, group)
    if control not in CONTROLS:
        raise ConfigError(f"{where}: unknown control {control!r}; known: {', '.join(CONTROLS)}")
    name, overrides = control, [f"evaluation.control={control}"]
    for key in SHOWN:
        if key in raw:
            name += f"_{key}_{raw[key]}"
            value = f"[{raw[key]}]" if key == "noise" else raw[key]
            overrides.append(f"{SHOWN[key]}={value}")
    return Arm(name, group, tuple(overrides))


def _test(raw: Any, experiments: Mapping[str, Experiment]) -> Test:
    kinds = {"where": str, "experiment": str, "ours": str, "theirs": str, "tasks": list}
    _check_keys({k: v for k, v in raw.items() if k != "margin"}, kinds, "a test")
    name = raw.get("experiment", "")
    if name not in experiments:
        raise ConfigError(f"there is no experiment {name!r}")
    sides = []
    for side in ("ours", "theirs"):
        variant, arm, group = [*str(raw.get(side)).split("/"), "", ""][:3]
        sides.append((variant, arm, group or "unseen"))
        experiments[name].find(*sides[-1])
    return Test(
        raw["where"], name, sides[0], sides[1],
        float(raw.get("margin", 0.0)), tuple(raw.get("tasks", ())),
    )  # fmt: skip


def _check_names(experiments: Iterable[Experiment]) -> None:
    """Kept files are shared by name: equal names must be equal settings."""
    known: dict[tuple[str, str], tuple[str, Variant]] = {}
    for experiment in experiments:
        for variant in experiment.variants:
            key = experiment.folder, variant.name
            name, other = known.setdefault(key, (experiment.name, variant))
            if replace(variant, arms=(), reference="") != replace(other, arms=(), reference=""):
                raise ConfigError(
                    f"the variant {variant.name!r} is not the same in {name} and "
                    f"{experiment.name}: let one use the other's, or rename it"
                )
