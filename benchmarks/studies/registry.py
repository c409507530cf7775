"""The registry of studies: what each consists of, and the claims that they test.

A study is a file ``definitions/NAME.yaml``:

    title, question: what it is called, what it asks
    of_the_paper: what of the paper it tests
    family: metaworld (success rates, the default) or locomotion (scores)
    folder: of its files, among the results; default: runs
    preset, overrides, seeds: what all its variants have in common
    episodes, seen_episodes: of each unseen and each seen task
    order, page: its place on the page, and whether it is there at all
    reference: {variant, arm}: what the others are compared with; without variant: each its own;
        and with ``also``, a list: further variants about which the finding has a sentence
    groups: {unseen, seen}: what these are called in this study, if something else
    per_task: whether the page has a table of all tasks
    folds: groups of folds (``llmdpd_torchrl.tasks.FOLDS``): each variant is trained on every fold,
        and a seed also chooses the goals and the demonstration, untrained policies' too
    datasets: names of ``configs/dataset``, and of files in ``{data}``: each variant is trained on
        each, and a dataset's name ends its name
    arms: of the variants that list none; a list in a list of arms is taken apart
    variants:
      NAME: {label, overrides, arms, policy, needs, reference}
      NAME: {use: the study that defines it, arms}
    module: instead of variants, a file of this folder that measures and stores by itself

An arm is one set of prompts on one group of tasks: ``both``, ``none/seen``, or a mapping of
``control``, ``group``, ``name`` (of its files) and some of :data:`CHANGES`. In ``overrides``,
``{data}`` is where the data are. A variant that ``needs`` something runs only if it is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.folds import chosen_folds
from llmdpd_torchrl.evaluation.controls import CONTROLS
from llmdpd_torchrl.utils.errors import ConfigError, first_line

GROUPS = ("unseen", "seen")
FAMILIES = ("metaworld", "locomotion")
POLICIES = ("trained", "retrieve_and_play", "retrieve_and_play_plus")
#: What an arm can change about demonstrations and episodes: the setting behind each key.
CHANGES = {
    "demonstrations": "evaluation.demonstrations",
    "turn": "evaluation.turn",
    "share": "evaluation.demonstration_fraction",
    "noise": "data.support_noise_levels",
    "gain": "data.support_expert_gain",
    "behaviour": "data.support_behaviour",
    "demonstration": "evaluation.demonstration",
    "stop_on_success": "evaluation.stop_on_success",
    "acting": "evaluation.acting",
    "hide_state": "evaluation.hide_state",
}
_STUDY = {
    "title": str, "question": str, "of_the_paper": str, "family": str, "folder": str,
    "preset": str, "overrides": list, "episodes": int, "seen_episodes": int, "order": int,
    "page": bool, "seeds": list, "reference": dict, "per_task": bool, "arms": list,
    "variants": dict, "groups": dict, "module": str, "folds": list,
    "datasets": list,
}  # fmt: skip
_VARIANT = {
    "label": str, "overrides": list, "arms": list, "policy": str, "needs": str, "use": str,
    "reference": str,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One set of prompts on one group of tasks.

    Attributes:
        name: of the stored files; equal names are equal settings.
        group: of tasks, ``"seen"`` or ``"unseen"``.
        overrides: of the evaluation's settings.
    """

    name: str
    group: str
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name for people."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Variant:
    """One policy, with any seed.

    Attributes:
        name: of the stored files; equal names are equal settings.
        label: for people.
        settings: of the training, all of them that differ from the defaults.
        arms: under which it is evaluated.
        policy: one of :data:`POLICIES`; what is not trained has one seed.
        needs: what not every machine has; empty: nothing.
        reference: the variant that it is compared with; empty: the study's.
        fold: that it is trained on, which ends its name; empty: what the settings say.
    """

    name: str
    label: str
    settings: tuple[str, ...]
    arms: tuple[Arm, ...]
    policy: str = "trained"
    needs: str = ""
    reference: str = ""
    fold: str = ""

    @property
    def base(self) -> str:
        """The name without the fold."""
        return self.name.removesuffix(f"-{self.fold}")

    def on(self, fold: str) -> Variant:
        """The same on a fold."""
        settings = *self.settings, f"tasks.split=fold_{fold}"
        return replace(self, name=f"{self.name}-{fold}", settings=settings, fold=fold)

    def of(self, dataset: str) -> Variant:
        """The same of a data set."""
        about = f"dataset={dataset}", f"data.sources=['{{data}}/{dataset}.hdf5']"
        name, label = f"{self.name}-{dataset}", f"{self.label}, {dataset}"
        return replace(self, name=name, label=label, settings=(*about, *self.settings))


@dataclass(frozen=True)
class Study:
    """One question, the policies that answer it, and how they are compared.

    Attributes:
        name: of its file.
        episodes: of each unseen and each seen task.
        reference: names of a variant, which may be empty, and of an arm.
        also: further variants about which the finding has a sentence.
        groups: what unseen and seen tasks are called.
        module: what runs it; empty: the common runner.
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
    family: str = "metaworld"
    folder: str = "runs"
    page: bool = True
    module: str = ""

    @property
    def measures_scores(self) -> bool:
        """Whether its tasks have scores instead of successes."""
        return self.family == "locomotion"

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """The seeds of a variant: one, if it is not trained and its goals are always the same."""
        return self.seeds if variant.policy == "trained" or variant.fold else self.seeds[:1]

    def episodes_of(self, arm: Arm) -> int:
        """Episodes of each task under an arm."""
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
            for candidate in one.arms:
                if (one.name, candidate.name, candidate.group) == (variant, arm, group):
                    return one, candidate
        raise ConfigError(f"{self.name} has no arm {variant}/{arm}/{group}")


@dataclass(frozen=True)
class Test:
    """Two arms whose difference decides about a claim.

    Attributes:
        where: on what, with which policies.
        study: its name.
        ours: variant, arm and group that the claim says is better.
        theirs: those that it is compared with.
        margin: in points; ours may be worse by less than this.
        tasks: the ones that count; empty: all of the group.
    """

    where: str
    study: str
    ours: tuple[str, str, str]
    theirs: tuple[str, str, str]
    margin: float = 0.0
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What the method's paper says, and what tests it."""

    text: str
    tests: tuple[Test, ...]


def read_studies(folder: Path) -> dict[str, Study]:
    """All studies of a folder, by name, in the order of the page.

    Raises:
        ConfigError: with a line for every mistake in the files.
    """
    documents: dict[str, Any] = {}
    found: dict[str, Study] = {}
    mistakes = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            documents[path.stem] = _document(path, _STUDY)
        except ConfigError as error:
            mistakes.append(str(error))
    for name, document in sorted(documents.items(), key=lambda item: item[1].get("order", 99)):
        try:
            found[name] = _study(name, document, documents)
        except ConfigError as error:
            mistakes.append(f"{folder / name}.yaml: {error}")
    mistakes += _conflicts(found.values())
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if not found:
        raise ConfigError(f"{folder}: there is no study in it")
    return found


def read_claims(path: Path, studies: Mapping[str, Study]) -> list[Claim]:
    """The claims of a file, all of whose tests name arms that the studies have.

    Raises:
        ConfigError: with a line for every mistake in the file.
    """
    claims, mistakes = [], []
    for entry in _document(path, {"claims": list})["claims"]:
        tests = []
        for raw in entry.get("tests", ()):
            try:
                tests.append(_test(raw, studies))
            except ConfigError as error:
                mistakes.append(f"{path}: {entry.get('claim')!r}: {error}")
        claims.append(Claim(str(entry.get("claim")), tuple(tests)))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return claims


def _document(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)})") from None
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


def _study(name: str, document: Mapping[str, Any], documents: Mapping[str, Any]) -> Study:
    needed = ("title", "question", "of_the_paper", *(() if "module" in document else ["variants"]))
    if missing := [key for key in needed if key not in document]:
        raise ConfigError(f"{', '.join(missing)} is missing")
    seeds = tuple(document.get("seeds", [0, 1, 2]))
    if not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ConfigError(f"seeds is {list(seeds)}: a list of integers from 0")
    unseen = document.get("episodes", 25)
    episodes = unseen, document.get("seen_episodes", unseen)
    if min(episodes) < 1:
        raise ConfigError(f"episodes are {episodes}: at least 1 of each task")
    family = document.get("family", "metaworld")
    if family not in FAMILIES:
        raise ConfigError(f"family is {family!r}: use one of {', '.join(FAMILIES)}")
    raws = document.get("variants", {})
    variants = tuple(_variant(key, raw, document, documents) for key, raw in raws.items())
    reference = document.get("reference", {})
    compared = reference.get("variant", ""), reference.get("arm", "both")
    also = tuple(reference.get("also", ()))
    for other in (compared[0], *also, *(v.reference for v in variants)):
        if other and other not in raws:
            raise ConfigError(f"reference is {other!r}: none of the variants")
    if datasets := document.get("datasets", ()):
        variants = tuple(variant.of(dataset) for dataset in datasets for variant in variants)
    folds = chosen_folds(document["folds"]) if "folds" in document else ()
    if folds:
        variants = tuple(variant.on(fold) for variant in variants for fold in folds)
    groups = document.get("groups", {})
    optional = {key: document[key] for key in ("per_task", "folder", "page", "module")
                if key in document}  # fmt: skip
    return Study(
        name, document["title"], document["question"], document["of_the_paper"],
        episodes, seeds, variants, compared, also,
        (groups.get("unseen", "unseen"), groups.get("seen", "seen")), family=family, **optional,
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
                f"{where}: use names the study that defines it, and only arms can be given beside "
                f"it; {raw['use']!r} does not define it"
            )
        raw = {**defined, "arms": raw.get("arms", document.get("arms", [])), "reference": ""}
    given = raw.get("arms", document.get("arms", []))
    several = [arm if isinstance(arm, list) else [arm] for arm in given]  # a list that is shared
    arms = tuple(_arm(arm, where) for arm in itertools.chain(*several))
    if not arms or len({(arm.name, arm.group) for arm in arms}) < len(arms):
        raise ConfigError(f"{where}: give at least one arm, each once")
    policy = raw.get("policy", "trained")
    if policy not in POLICIES:
        raise ConfigError(f"{where}: policy is {policy!r}: use one of {', '.join(POLICIES)}")
    settings = [*source.get("overrides", []), *raw.get("overrides", [])]
    if source.get("family", "metaworld") == "metaworld" or "preset" in source:
        settings.insert(0, f"preset={source.get('preset', 'ml45')}")
    if not all(isinstance(setting, str) and "=" in setting for setting in settings):
        raise ConfigError(f"{where}: overrides are texts of the form key=value")
    return Variant(
        name, raw.get("label", name), tuple(settings), arms, policy, raw.get("needs", ""),
        raw.get("reference", ""),
    )  # fmt: skip


def _arm(raw: Any, where: str) -> Arm:
    if isinstance(raw, str):
        control, _, group = raw.partition("/")
        raw = {"control": control, "group": group or "unseen"}
    known = ("control", "group", "name", *CHANGES)
    if not isinstance(raw, dict) or set(raw) - set(known):
        keys = ", ".join(known)
        raise ConfigError(f"{where}: an arm is of {keys}, not {raw!r}")
    control, group = raw.get("control", "both"), raw.get("group", "unseen")
    if group not in GROUPS:
        raise ConfigError(f"{where}: {group!r} is no group of tasks: use {' or '.join(GROUPS)}")
    if control not in CONTROLS:
        raise ConfigError(f"{where}: unknown control {control!r}; known: {', '.join(CONTROLS)}")
    name, overrides = control, [f"evaluation.control={control}"]
    for key in (key for key in CHANGES if key in raw):
        name += f"_{key}_{raw[key]}"
        value = f"[{raw[key]}]" if key == "noise" else raw[key]
        overrides.append(f"{CHANGES[key]}={value}")
    return Arm(str(raw.get("name", name)), group, tuple(overrides))


def _test(raw: Any, studies: Mapping[str, Study]) -> Test:
    kinds = {"where": str, "study": str, "ours": str, "theirs": str, "tasks": list}
    _check_keys({k: v for k, v in raw.items() if k != "margin"}, kinds, "a test")
    name = raw.get("study", "")
    if name not in studies:
        raise ConfigError(f"there is no study {name!r}")
    sides = []
    for side in ("ours", "theirs"):
        variant, arm, group = [*str(raw.get(side)).split("/"), "", ""][:3]
        sides.append((variant, arm, group or "unseen"))
        studies[name].find(*sides[-1])
    return Test(
        raw["where"], name, sides[0], sides[1],
        float(raw.get("margin", 0.0)), tuple(raw.get("tasks", ())),
    )  # fmt: skip


def _conflicts(studies: Iterable[Study]) -> list[str]:
    """Stored files are shared by name: equal names must be equal settings."""
    known: dict[tuple[str, str], tuple[str, Variant]] = {}
    mistakes = []
    for study in studies:
        for variant in study.variants:
            name, other = known.setdefault((study.folder, variant.name), (study.name, variant))
            if replace(variant, arms=(), reference="") != replace(other, arms=(), reference=""):
                mistakes.append(
                    f"the variant {variant.name!r} is not the same in {name} and {study.name}: "
                    "let one use the other's, or rename it"
                )
    return mistakes
