"""Studies of trained policies, and the page about them: ``docs/results.md``.

    python -m benchmarks.studies --list             # what is done, what is missing, how long
    python -m benchmarks.studies comparison         # runs what is missing, writes the page
    python -m benchmarks.studies --plan steps       # what that would run, one line a policy
    python -m benchmarks.studies --page             # writes the page from the stored files
    python -m benchmarks.studies --experiments      # writes configs/experiment/STUDY/VARIANT.yaml
    python -m benchmarks.studies --check            # recomputes the figures from the stored files
    python -m benchmarks.studies hopper data=FILE   # a study that a module of its own runs

A study is a file in ``definitions/``; see ``registry.py``. What is stored (``benchmarks/results/``:
a CSV file an arm, a row an episode, and a JSON file a training) is not run again, and may be
deleted to run it from scratch. Re-run the same command to resume; several processes share the
work, by themselves or by ``variants`` and ``seeds``. Further settings:

    variants=[pooled,retrieved]  seeds=[0]    only these; also variants that need something special
    folds=[dev1,hard]                         of a study with folds, also groups; default: report
    arms=[clean,noisy]                        only these; default: all of the variants
    data=PATH                                 default: in the user's cache, made if needed
    workers=N                                 processes of evaluations; default: one a core
    output=FOLDER                             of the trainings; default: outputs/results
    definitions=FOLDER  store=FOLDER  page=FILE

A study with a module of its own has the settings of its ``Options``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, check_figures
from benchmarks.studies import experiments, figures, guidance, unseen_all
from benchmarks.studies.folds import chosen_folds
from benchmarks.studies.options import read_options
from benchmarks.studies.page import build_page
from benchmarks.studies.registry import Study, read_claims, read_studies
from benchmarks.studies.store import Store
from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.files import write_text

ROOT = Path(__file__).parents[2]
#: Studies whose pages and figures modules of their own write.
OWN_PAGES = (unseen_all, guidance)


@dataclass
class Options:
    """Settings of the common runner."""

    variants: Sequence[str] = ()
    seeds: Sequence[int] = ()
    folds: Sequence[str] = ()
    arms: Sequence[str] = ()
    data: str = ""
    workers: int | None = None
    output: str = str(ROOT / "outputs" / "results")
    definitions: str = str(Path(__file__).parent / "definitions")
    store: str = str(RESULTS)
    page: str = str(ROOT / "docs" / "results.md")


def _module(study: Study) -> Any:
    return importlib.import_module(f"benchmarks.studies.{study.module}")


def run(study: Study, options: Options, store: Store, plan: bool) -> None:
    """Run what is missing of a study, or print what would be run.

    Raises:
        UserError: if that fails.
    """
    # Not above: the page and the figures should not wait for the simulators.
    from benchmarks.studies import runner
    from benchmarks.studies.jobs import jobs
    from benchmarks.studies.plan import seconds_left

    place = _place(options, store)
    wanted = jobs(study, options.variants, options.seeds, options.folds, options.arms)
    if study.measures_scores and not options.data:
        if not any(job.missing(store) for job in wanted):
            return
        raise ConfigError(f"study {study.name} needs data=PATH, where its recorded episodes are")
    runner.check(wanted, place)
    for job in wanted:
        if not plan:
            runner.run(job, place)
        elif arms := job.missing(store):
            minutes = seconds_left(job, place) / 60
            names = ", ".join(f"{arm.name}-{arm.group}" for arm in arms)
            print(f"{job.command()}  # {names}; about {minutes:.0f} minutes")


def _place(options: Options, store: Store) -> Any:
    from benchmarks.studies.jobs import Place

    data = Path(options.data).resolve() if options.data else None
    return Place(store, data, Path(options.output).resolve(), options.workers)


def list_studies(studies: Mapping[str, Study], options: Options, store: Store) -> None:
    """Print a line a study: what is done, what is missing, and about how long that takes."""
    from benchmarks.studies.jobs import jobs
    from benchmarks.studies.plan import seconds_left

    place = _place(options, store)
    for study in studies.values():
        if study.module:
            print(f"{study.name}: run by benchmarks/studies/{study.module}.py")
            continue
        arms = [
            (variant, seed, arm)
            for variant in study.variants
            if variant.fold in ("", *chosen_folds(["report"]))
            for seed in study.seeds_of(variant)
            for arm in variant.arms
        ]
        done = sum(store.episodes(study, *key) is not None for key in arms)
        line = f"{study.name}: {done} of {len(arms)} arms are there"
        if done < len(arms):
            seconds = sum(seconds_left(job, place) for job in jobs(study, (), ()))
            line += f"; about {seconds / 3600:.1f} hours for the rest"
            needs = {v.base: v.needs for v in study.variants if v.needs}
            without = ", ".join(f"{name} ({what})" for name, what in needs.items())
            line += f", without {without}" if needs else ""
        print(line)


def check(names: Sequence[str], studies: Mapping[str, Study], store: Store) -> int:
    """Compare the committed figures with those of the stored files; returns the exit code."""
    found = figures.all_figures(studies, store)
    for pages in OWN_PAGES:
        found |= pages.all_figures(studies, store)
    code = 0
    for name, values in found.items():
        if not names or name in names:
            code |= check_figures(name, values, tolerance=1e-9)
    modules = [s for s in studies.values() if s.module and (s.name in names or not names)]
    for study in modules:
        # One that measures again, which takes a while, only if it is named.
        if names or not getattr(_module(study), "MEASURES_AGAIN", False):
            code |= _module(study).check()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page, or one of these alone."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help="a study, and key=value, see above")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="what is done and what is missing")
    mode.add_argument("--plan", action="store_true", help="what would be run; runs nothing")
    mode.add_argument("--page", action="store_true", help="write the page; runs nothing")
    mode.add_argument(
        "--renamed", action="store_true",
        help="after settings were renamed and nothing else: store the new fingerprints",
    )  # fmt: skip
    mode.add_argument(
        "--experiments", action="store_true",
        help="write the variants for llmdpd train +experiment=STUDY/VARIANT",
    )  # fmt: skip
    mode.add_argument("--check", action="store_true", help="recompute the committed figures")
    given = parser.parse_args(arguments)
    names = [word for word in given.words if "=" not in word]
    settings = [word for word in given.words if "=" in word]
    try:
        own = [s for s in settings if s.startswith("definitions=")]
        studies = read_studies(Path(read_options(Options, own).definitions))
        unknown = [name for name in names if name not in {*studies, *figures.NAMES}]
        alone = given.list or given.page or given.check or given.renamed or given.experiments
        if unknown or not (names or alone):
            name = unknown[0] if unknown else ""
            raise ConfigError(f"study is {name!r}: use one of {', '.join(studies)}")
        if not given.check and len(names) == 1 and studies[names[0]].module:
            module = _module(studies[names[0]])
            options = read_options(module.Options, settings)
            if not given.plan:
                module.run(options)
            return 0
        return _common(given, names, read_options(Options, settings), studies)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; re-run the same command to resume", file=sys.stderr)
        return 130


def _common(
    given: argparse.Namespace, names: Sequence[str], options: Options, studies: Mapping[str, Study]
) -> int:
    store = Store(Path(options.store).resolve())
    claims = read_claims(Path(options.definitions).parent / "claims.yaml", studies)
    if given.check:
        return check(names, studies, store)
    if given.renamed:
        from benchmarks.studies.runner import adopt_renames

        found = adopt_renames(studies, _place(options, store), write=True)
        print(f"{len(found)} stored trainings have new fingerprints")
        return 0
    if given.experiments:
        print(f"{experiments.write(studies)} experiments in {experiments.FOLDER}")
        return 0
    if given.list:
        list_studies(studies, options, store)
        return 0
    for name in () if given.page else names:
        run(studies[name], options, store, given.plan)
    if not given.plan:
        path = Path(options.page)
        path.parent.mkdir(parents=True, exist_ok=True)
        where = Path(os.path.relpath(store.root, path.parent)).as_posix()
        write_text(path, build_page(studies, claims, store, where))
        print(f"page: {path}")
        if store.root == RESULTS:
            figures.publish(studies, store)
        for pages in OWN_PAGES:
            pages.publish(studies, store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
