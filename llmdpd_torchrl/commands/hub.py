"""``llmdpd hub``: publish a policy with its results on the Hugging Face Hub, or download one."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmdpd_torchrl.utils.errors import ConfigError, DataError, run_command_line

# What needs torch is imported in the functions, so that `--help` does not wait for it.

RESULTS = "results.json"
EXTRAS = {RESULTS: RESULTS, "success.png": "success.png", "episodes.mp4": "replay.mp4"}
"""Files of a run that are published, and their names there: the Hub plays a video of that name."""
LARGEST = 10_000_000
"""Bytes of a plot or a video that is published; larger ones are left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="llmdpd hub", description="Publish a policy on the Hugging Face Hub, or download one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser(
        "publish",
        help="prepare a folder with weights, card and results, and push it",
        description="Writes config.json, model.safetensors and README.md, with the results of the "
        f"run, into a folder, beside {', '.join(EXTRAS.values())} if they are there, and pushes "
        "these files only. A README.md written by hand stays.",
    )
    publish.add_argument("folder", type=Path, help="of a run, or of a policy alone")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on the Hub")
    publish.add_argument("--dry-run", action="store_true", help="prepare only; needs no network")
    publish.add_argument("--output", type=Path, help="folder to prepare (default: hub/OWNER/NAME)")
    visible = publish.add_mutually_exclusive_group()
    visible.add_argument("--public", action="store_true", help="make a new repository public")
    visible.add_argument("--private", action="store_true", help="or private, the default")
    publish.add_argument("--license", help="of the policy, as the Hub calls it (default: mit)")
    publish.add_argument("--message", help="of the commit")
    download = commands.add_parser("download", help="get a policy's files")
    download.add_argument("repo", metavar="OWNER/NAME")
    download.add_argument("--output", type=Path, help="new folder (default: in the Hub's cache)")
    download.add_argument("--revision", help="branch, tag or commit")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    from llmdpd_torchrl.policies.pretrained import (
        CARD,
        CONFIG,
        WEIGHTS,
        check_repository,
        upload_policy,
    )

    check_repository(options.repo)
    if options.command == "download":
        return _download(options)
    output = options.output or Path("hub") / options.repo
    prepare(options.folder, output, options.repo, options.license)
    files = [output / name for name in (CONFIG, WEIGHTS, CARD, *EXTRAS.values())]
    for path in files:
        if path.exists():
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    if options.dry_run:
        print(f"nothing was pushed (--dry-run); these files would go to {options.repo}")
        return 0
    extras = list(EXTRAS.values())
    print(
        upload_policy(
            output,
            options.repo,
            private=not options.public,
            message=options.message,
            extras=extras,
        )
    )
    return 0


def _download(options: argparse.Namespace) -> int:
    from llmdpd_torchrl.policies import LLMDPDPolicy
    from llmdpd_torchrl.policies.pretrained import download_policy

    if options.output is not None and options.output.exists():
        raise ConfigError(f"{options.output} exists: choose a new folder")
    folder = download_policy(options.repo, options.revision, options.output)
    LLMDPDPolicy.from_pretrained(folder)
    print(folder)
    return 0


def prepare(folder: Path, output: Path, repository: str, licence: str | None = None) -> None:
    """Write what is published of a run, or of a policy, into ``output``.

    Raises:
        ConfigError: if ``output`` is not writable.
        DataError: if there is no policy, it does not load, or the results are another policy's.
    """
    from llmdpd_torchrl.policies import LLMDPDPolicy
    from llmdpd_torchrl.policies.pretrained import CARD, is_generated
    from llmdpd_torchrl.utils.files import make_writable_folder, write_bytes

    source = folder / "checkpoint" if LLMDPDPolicy.is_saved(folder / "checkpoint") else folder
    if not LLMDPDPolicy.is_saved(source):
        raise DataError(f"no policy in {folder}: give the folder of a run, or of a policy")
    policy = LLMDPDPolicy.from_pretrained(source)
    policy.info["name"] = repository
    if licence is not None:
        policy.info["license"] = licence
    if (folder / RESULTS).exists():
        policy.info["results"] = list(_results(folder / RESULTS, policy.info))
    make_writable_folder(output, "output", "--output")
    if output.resolve() != source.resolve():
        for name in (CARD, *EXTRAS.values()):
            (output / name).unlink(missing_ok=True)
        if (source / CARD).exists() and not is_generated(source / CARD):
            write_bytes(output / CARD, (source / CARD).read_bytes())
        _copy_extras(folder, output)
    policy.save_pretrained(output)


def _copy_extras(folder: Path, output: Path) -> None:
    from llmdpd_torchrl.utils.files import write_bytes, write_json

    for found, name in EXTRAS.items():
        path = folder / found if (folder / found).exists() else folder / name
        if not path.exists():
            continue
        if path.is_symlink():
            raise DataError(f"{path}: a symbolic link, which is not published: copy the file")
        if path.stat().st_size > LARGEST:
            print(f"{path} has more than {LARGEST / 1e6:.0f} MB and is left out")
        elif name == RESULTS:  # without the command: its paths are nobody else's business
            content = json.loads(path.read_text(encoding="utf-8"))
            write_json(output / name, {k: v for k, v in content.items() if k != "command"})
        else:
            write_bytes(output / name, path.read_bytes())


def _results(path: Path, info: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The means of ``results.json`` for the card, as ``CardResult`` has them."""
    from llmdpd_torchrl.evaluation.results import read_results_json

    summary, about = read_results_json(path)
    for key in ("fingerprint", "updates"):
        if about.get(key) != info.get(key):
            raise DataError(
                f"{path}: the results are another training's ({key} is {about.get(key)!r}, the "
                f"policy's is {info.get(key)!r}): evaluate this policy, or move the file away"
            )
    measure = "success rate, %" if summary.measure == "success %" else "normalised score"
    for group, mean in (("unseen", summary.unseen), ("seen", summary.seen)):
        if mean is not None:
            value, *limits = mean.percent
            low, high = (None if math.isnan(limit) else round(limit, 1) for limit in limits)
            yield {
                "group": group,
                "tasks": mean.tasks,
                "measure": measure,
                "value": round(value, 1),
                "low": low,
                "high": high,
                "episodes": mean.episodes,
                "note": _note(about),
            }


def _note(about: dict[str, Any]) -> str:
    """What was unusual about the prompts of an evaluation."""
    control, count = about.get("control", "both"), about.get("demonstrations", 1)
    part = about.get("demonstration_fraction", 1.0)
    notes = [f"prompted with {control}"] * (control != "both")
    notes += [f"{count} demonstrations"] * (count != 1)
    notes += [f"first {100 * part:g} % of the demonstration"] * (part != 1)
    return "".join(f", {note}" for note in notes)
