"""``llmdpd hub``: publish a policy with its results on the Hugging Face Hub, or download one."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmdpd_torchrl.utils.errors import ConfigError, DataError, run_command_line

# What needs torch is imported in the functions, so that `--help` does not wait for it.

RESULTS = "results.json"
EXTRAS = {RESULTS: RESULTS, "success.png": "success.png", "episodes.mp4": "replay.mp4"}
"""Files of a run that are published, and their names there: the Hub plays a video of that name."""
LARGEST = 10_000_000
"""Bytes of such a file; larger ones are left out."""
PUBLIC = (
    "name", "seed", "prompt", "fingerprint", "updates", "data_hash", "support_hash", "split",
    "evaluation", "control", "demonstrations", "demonstration_fraction", "texts", "starts",
    "episodes", "summary", "versions",
)  # fmt: skip
"""Entries of ``results.json`` that are published."""


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
        f"run, into a folder, beside {', '.join(EXTRAS.values())} if they are there and have no "
        f"more than {LARGEST / 1e6:.0f} MB, and pushes these files only. Of results.json, entries "
        "that may name folders of this machine are left out. A README.md written by hand stays, in "
        "the prepared folder or else beside the policy.",
    )
    publish.add_argument("folder", type=Path, help="of a run, or of a policy alone")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on the Hub")
    publish.add_argument("--dry-run", action="store_true", help="prepare only; needs no network")
    publish.add_argument(
        "--output",
        type=Path,
        help="new folder, or one prepared for this repository before (default: hub/OWNER/NAME)",
    )
    publish.add_argument(
        "--public", action="store_true", help="make a new repository public (default: private)"
    )
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
    from llmdpd_torchrl.policies.pretrained import download_policy, open_policy

    if options.output is not None and options.output.exists():
        raise ConfigError(f"{options.output} exists: choose a new folder")
    try:
        folder = download_policy(options.repo, options.revision, options.output)
        open_policy(folder).check_weights()
    except BaseException:
        if options.output is not None:
            shutil.rmtree(options.output, ignore_errors=True)
        raise
    print(folder)
    return 0


def prepare(folder: Path, output: Path, repository: str, licence: str | None = None) -> None:
    """Write what is published of a run, or of a policy, into ``output``.

    That is a new folder, or one that was prepared for this repository before, which may be
    ``folder`` itself. A card written by hand stays there, and no other file is deleted.

    Raises:
        ConfigError: if ``output`` is not writable, or holds anything else, or something that is
            not published as it is.
        DataError: if there is no policy, it does not load, or the results are another policy's.
    """
    from llmdpd_torchrl.policies import LLMDPDPolicy
    from llmdpd_torchrl.policies.pretrained import CARD
    from llmdpd_torchrl.utils.files import make_writable_folder, write_bytes

    source = folder / "checkpoint" if LLMDPDPolicy.is_saved(folder / "checkpoint") else folder
    if not LLMDPDPolicy.is_saved(source):
        raise DataError(f"no policy in {folder}: give the folder of a run, or of a policy")
    policy = LLMDPDPolicy.from_pretrained(source)
    encoder = _public_encoder(policy.info)
    is_same = output.resolve() == folder.resolve() == source.resolve()
    if is_same and encoder != policy.info.get("text_encoder"):
        raise ConfigError(
            f"{source} names a local folder as its text encoder, which is not published: prepare "
            "a folder beside it (--output)"
        )
    if not is_same:
        _check_output(output, source, repository)
    policy.info["name"] = repository
    if encoder is not None:
        policy.info["text_encoder"] = encoder
    if licence is not None:
        policy.info["license"] = licence
    if (folder / RESULTS).exists():
        policy.info["results"] = list(_results(folder / RESULTS, policy.info))
    extras = dict(_read_extras(folder))
    for name in EXTRAS.values():
        path = output / name
        if path.exists() and (
            name not in extras or (is_same and path.read_bytes() != extras[name])
        ):
            raise ConfigError(
                f"{path} is not what is published of {folder}: move it away, or prepare another "
                "folder (--output)"
            )
    card = source / CARD if _is_by_hand(source / CARD) else None
    is_kept = _is_by_hand(output / CARD)
    make_writable_folder(output, "output", "--output")
    for name, content in extras.items():
        write_bytes(output / name, content)
    if card is not None and not is_kept:
        write_bytes(output / CARD, card.read_bytes())
    policy.save_pretrained(output)


def _check_output(output: Path, source: Path, repository: str) -> None:
    """Refuse to prepare a folder that holds anything but what was prepared there before."""
    from llmdpd_torchrl.policies.pretrained import is_saved, open_policy

    if source.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"--output {output} holds the policy to publish: choose a new folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    name = open_policy(output).info.get("name") if is_saved(output) else None
    if name != repository:
        raise ConfigError(
            f"--output {output} holds other files than those prepared for {repository}: choose a "
            "new folder"
        )


def _is_by_hand(card: Path) -> bool:
    from llmdpd_torchrl.policies.pretrained import is_generated

    if not card.exists() or is_generated(card):
        return False
    _check_no_link(card)
    return True


def _check_no_link(path: Path) -> None:
    if path.is_symlink():
        raise DataError(f"{path}: a symbolic link, which is not published: copy the file")


def _read_extras(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that is published beside the policy."""
    for found, name in EXTRAS.items():
        path = folder / found if (folder / found).exists() else folder / name
        if not path.exists():
            continue
        _check_no_link(path)
        if path.stat().st_size > LARGEST:
            print(f"{path} has more than {LARGEST / 1e6:.0f} MB and is left out")
        elif name == RESULTS:
            content = _public_results(json.loads(path.read_text(encoding="utf-8")))
            text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
            yield name, f"{text}\n".encode()
        else:
            yield name, path.read_bytes()


def _public_results(content: dict[str, Any]) -> dict[str, Any]:
    """The results without what may name this machine's folders."""
    public = {key: content[key] for key in PUBLIC if key in content}
    if not isinstance(public.get("demonstrations"), int):  # those of `llmdpd eval`, by their files
        public.pop("demonstrations", None)
    for episode in public.get("episodes", ()):
        if episode.get("error") is not None:  # "the simulator failed at reset: " and why
            episode["error"] = episode["error"].partition(":")[0]
    return public


def _public_encoder(info: dict[str, Any]) -> Any:
    """``info["text_encoder"]`` with a local folder's name in the place of its path."""
    encoder = info.get("text_encoder")
    options = encoder if isinstance(encoder, dict) else {"model": encoder}
    path = Path(str(options.get("model"))).expanduser()
    kind = (info.get("text_encoder_identity") or {}).get("model")
    is_local = kind == "local folder" or (kind is None and path.is_dir()) or path.is_absolute()
    if encoder is None or not is_local:
        return encoder
    return {**options, "model": path.name} if isinstance(encoder, dict) else path.name


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
    if "texts" in about:
        return ", by llmdpd eval on chosen tasks and prompts"
    control, count = about.get("control", "both"), about.get("demonstrations", 1)
    part = about.get("demonstration_fraction", 1.0)
    notes = [f"prompted with {control}"] * (control != "both")
    notes += [f"{count} demonstrations"] * (count != 1)
    notes += [f"first {100 * part:g} % of the demonstration"] * (part != 1)
    return "".join(f", {note}" for note in notes)
