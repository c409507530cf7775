"""The comparison, and the page about it: ``docs/results.md``.

    python -m benchmarks.studies --list  # what is done, what is missing, how long
    python -m benchmarks.studies experiment=comparison     # runs what is missing, writes the page
    python -m benchmarks.studies --plan experiment=steps   # what that would run, one line a policy
    python -m benchmarks.studies --page  # writes the page from what is kept
    python -m benchmarks.studies --check  # recompute the figures from what is kept

An experiment is a file in ``definitions/``; see ``registry.py``. What is kept
(``benchmarks/results/runs/``: a CSV file an arm, a row an episode, and a JSON file a training) is
not run again, and may be deleted to run it anew. A run that was stopped goes on by the same
command; several share the work, by themselves or by ``variants`` and ``seeds``. Further settings:

    variants=[pooled,retrieved]  seeds=[0]    only these; also variants that need something special
    data=FOLDER                               default: data_cache/metaworld_ml45; made if not there
    workers=N                                 processes of evaluations; default: one a core
    output=FOLDER                             of the trainings; default: outputs/results
    configs=FOLDER  keep=FOLDER  page=FILE    of definitions, kept files, and the page
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, check_figures, write_figures, write_readme_table
from benchmarks.studies.page import build_page, figures, summary
from benchmarks.studies.registry import Claim, Experiment, read_claims, read_experiments
from benchmarks.studies.store import Store
from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.files import write_text

ROOT = Path(__file__).parents[2]


@dataclass
class Options:
    """What can be set on the command line, as key=value."""

    experiment: str = ""
    variants: Sequence[str] = ()
    seeds: Sequence[int] = ()
    data: str = ""
    workers: int | None = None
    output: str = str(ROOT / "outputs" / "results")
    configs: str = str(Path(__file__).parent / "definitions")
    keep: str = str(RESULTS)
    page: str = str(ROOT / "docs" / "results.md")

    @classmethod
    def read(cls, settings: Sequence[str]) -> Options:
        """From ``key=value``.

        Raises:
            ConfigError: on an unknown key or a value of another kind.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or key not in known:
                raise ConfigError(f"{setting}: give key=value, with {', '.join(sorted(known))}")
            values[key] = value
            if key in ("variants", "seeds", "workers"):
                try:
                    values[key] = yaml.safe_load(value)
                except yaml.YAMLError:
                    raise ConfigError(f"{setting}: {key} can not be read") from None
        options = cls(**values)
        for key, kind in (("variants", str), ("seeds", int)):
            value = getattr(options, key)
            if not isinstance(value, list | tuple) or not all(isinstance(v, kind) for v in value):
                raise ConfigError(f"{key} is {value!r}: give a list, such as '{key}=[...]'")
        if options.workers is not None and not isinstance(options.workers, int):
            raise ConfigError(f"workers is {options.workers!r}: give a whole number")
        return options

    def one(self, experiments: Mapping[str, Experiment]) -> Experiment:
        """The experiment that is asked for.

        Raises:
            ConfigError: if there is no such one.
        """
        if self.experiment not in experiments:
            raise ConfigError(
                f"experiment is {self.experiment!r}: use one of {', '.join(experiments)}"
            )
        return experiments[self.experiment]


def run(experiment: Experiment, options: Options, store: Store, plan: bool) -> None:
    """Run what is missing of an experiment, or say what would be run.

    Raises:
        UserError: if that fails.
    """
    if experiment.script:
        _run_script(experiment, options, store, plan)
        return
    # Not above: the page and the list should not wait for torch.
    from benchmarks.studies.runner import Place, check, jobs, seconds_left
    from benchmarks.studies.runner import run as do

    data = Path(options.data or ROOT / "data_cache" / "metaworld_ml45").resolve()
    place = Place(store, data, Path(options.output).resolve(), options.workers)
    wanted = jobs(experiment, options.variants, options.seeds)
    check(wanted, place)
    for job in wanted:
        if not plan:
            do(job, place)
        elif arms := job.missing(store):
            minutes = seconds_left(job, place) / 60
            shown = ", ".join(f"{arm.name}-{arm.group}" for arm in arms)
            print(f"{job.command()}  # {shown}; about {minutes:.0f} minutes")


def list_experiments(experiments: Mapping[str, Experiment], options: Options, store: Store) -> None:
    """A line an experiment: what is done, what is missing, and about how long that takes."""
    from benchmarks.studies.runner import Place, jobs, seconds_left

    place = Place(store, Path(options.data), Path(options.output).resolve())
    for experiment in experiments.values():
        arms = [
            (variant, seed, arm)
            for variant in experiment.variants
            for seed in experiment.seeds_of(variant)
            for arm in variant.arms
        ]
        done = sum(store.episodes(experiment, *key) is not None for key in arms)
        line = f"{experiment.name}: {done} of {len(arms)} arms are there"
        if experiment.script:
            line += f"; run by benchmarks.studies.{experiment.script}"
        elif done < len(arms):
            seconds = sum(seconds_left(job, place) for job in jobs(experiment, (), ()))
            line += f"; about {seconds / 3600:.1f} hours for the rest"
            needs = [f"{v.name} ({v.needs})" for v in experiment.variants if v.needs]
            line += f", without {', '.join(needs)}" if needs else ""
        print(line)


def _run_script(experiment: Experiment, options: Options, store: Store, plan: bool) -> None:
    """An experiment of another benchmark's, which keeps its files itself."""
    seeds = tuple(options.seeds) or experiment.seeds
    missing = [
        (v.name, s) for v in experiment.variants for s in seeds if store.missing(experiment, v, s)
    ]
    command = ["-m", f"benchmarks.studies.{experiment.script}"]
    command += ["--data", options.data] if options.data else []
    command += ["--seeds", *map(str, seeds)]
    if plan or not missing:
        print(f"python {' '.join(command)}" if missing else f"{experiment.name}: kept")
        return
    if options.variants:
        raise ConfigError(
            f"experiment {experiment.name} is run by {command[0]}, whose own options choose "
            "policies: leave variants out"
        )
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        raise ConfigError(f"{command[0]} ended with exit code {code}: see above")


def write_page(
    experiments: Mapping[str, Experiment], claims: Sequence[Claim], options: Options, store: Store
) -> None:
    """Write the page from what is kept."""
    path = Path(options.page)
    path.parent.mkdir(parents=True, exist_ok=True)
    where = os.path.relpath(store.root, path.parent)
    write_text(path, build_page(experiments, claims, store, Path(where).as_posix()))
    print(f"page: {path}")


def _write_figures(found: Mapping[str, float], raw: Mapping[str, str]) -> None:
    """Beside the other benchmarks' figures; of the same ones, the file stays as it is."""
    path = RESULTS / "results.json"
    if not path.exists() or json.loads(path.read_text())["figures"] != found:
        write_figures("results", found, raw, "python -m benchmarks.studies --page")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page, or one of these alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="key=value, see above")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="what is done and what is missing")
    mode.add_argument("--plan", action="store_true", help="what would be run; runs nothing")
    mode.add_argument("--page", action="store_true", help="write the page; runs nothing")
    mode.add_argument("--check", action="store_true", help="recompute the committed figures")
    given = parser.parse_args(arguments)
    try:
        options = Options.read(given.settings)
        store = Store(Path(options.keep).resolve())
        configs = Path(options.configs)
        experiments = read_experiments(configs)
        claims = read_claims(configs.parent / "claims.yaml", experiments)
        if given.check:
            return check_figures("results", figures(experiments, store)[0], tolerance=1e-9)
        if given.list:
            list_experiments(experiments, options, store)
            return 0
        if not given.page:
            run(options.one(experiments), options, store, given.plan)
        if not given.plan:
            write_page(experiments, claims, options, store)
            if store.root == RESULTS:
                table = summary(experiments["comparison"], store).markdown()
                write_readme_table("studies", table.splitlines())
                _write_figures(*figures(experiments, store))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
