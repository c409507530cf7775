"""``llmdpd data``: collect, fetch or export datasets, list those in the cache, show one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmdpd_torchrl.tasks.table import METAWORLD_TASKS, SPLITS
from llmdpd_torchrl.utils.cache import CACHE_VARIABLE, cache_root, used_bytes
from llmdpd_torchrl.utils.errors import ConfigError, DataError, run_command_line

# What needs torch is imported in the functions, so that `--help` does not wait for it.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmdpd data",
        description="Collect, fetch or export datasets, list those in the cache, show one.",
        epilog=f"{CACHE_VARIABLE} names another cache folder than the platform's.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser(
        "collect", help="collect Meta-World episodes with scripted experts (resumes what is there)"
    )
    collect.add_argument(
        "folder",
        nargs="?",
        help="of the dataset, created if it does not exist (default: the cache's for these "
        "settings, where trainings with the same settings find it: without options, those of "
        "`llmdpd train`)",
    )
    collect.add_argument(
        "--tasks",
        nargs="+",
        default=["all"],
        help=f"task names, 'all', or a split's training tasks: {', '.join(SPLITS)} (default: all)",
    )
    collect.add_argument(
        "--episodes", type=int, help="per task (default: 100; preset=ml45 reads 60)"
    )
    collect.add_argument(
        "--noise",
        type=float,
        nargs="+",
        help="levels of action noise, which the episodes of a task cycle through (default: 0.0 0.1 "
        "0.2 0.3)",
    )
    collect.add_argument("--seed", type=int, help="of placements and noise (default: 0)")
    collect.add_argument("--workers", type=int, help="processes (default: one per core)")
    fetch = commands.add_parser("fetch", help="download datasets of D4RL into the cache")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="such as hopper-medium-v2")
    export = commands.add_parser(
        "export", help="write episodes as a data set of Minari's or LeRobot's, or as HDF5"
    )
    export.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="TASK=FILE, a file (.npz, .hdf5) or folder of one task; or one that names its own",
    )
    target = export.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--minari", metavar="ID", help="of a new local data set, such as toy/two-v0"
    )
    target.add_argument("--lerobot", metavar="FOLDER", help="a new one")
    target.add_argument("--hdf5", metavar="FILE", help="a new one, in D4RL's layout")
    export.add_argument(
        "--text", action="append", default=[], metavar="TASK=TEXT", help="words of a task"
    )
    export.add_argument(
        "--action-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="of the sources' actions, which are mapped to [-1, 1] (default: -1 1)",
    )  # fmt: skip
    commands.add_parser("list", help="print what is in the cache: kind, size, content, path")
    show = commands.add_parser("show", help="print the tasks and figures of a dataset")
    show.add_argument("folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command_line(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list()
    if options.command == "export":
        return _export(options)
    from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
    from llmdpd_torchrl.data.download import fetch_d4rl
    from llmdpd_torchrl.data.manifest import Manifest
    from llmdpd_torchrl.experiments.command import compose_settings
    from llmdpd_torchrl.experiments.config import read

    if options.command == "fetch":
        for name in options.names:
            print(fetch_d4rl(name))
        return 0
    if options.command == "collect":
        tasks = options.tasks
        if tasks == ["all"]:
            tasks = METAWORLD_TASKS.names
        elif len(tasks) == 1 and tasks[0] in SPLITS:
            tasks = SPLITS[tasks[0]].train
        given = {
            "episodes_per_task": options.episodes,
            "noise_levels": options.noise,
            "behaviours": None if options.noise is None else (),  # which would replace it
            "seed": options.seed,
        }
        changes = {key: value for key, value in given.items() if value is not None}
        default = compose_settings("train_metaworld", []).data
        settings = read(CollectionSettings, default, **changes)
        folder = settings.folder if options.folder is None else options.folder
        print(f"data: {folder}")
        manifest = collect_metaworld(folder, tasks, settings, workers=options.workers)
    else:
        manifest = Manifest.read(options.folder)
    for name, record in manifest.tasks.items():
        print(
            f"{name:28s} {len(record.episodes):5d} episodes {record.transitions:8d} transitions  "
            f"success {record.success_rate:.2f}  mean return {record.mean_return:8.1f}"
        )
    print(f"episode success {manifest.episode_success:.3f}  data hash {manifest.data_hash}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from llmdpd_torchrl.data import export_d4rl, export_lerobot, export_minari, load_episodes

    named = [_pair(source, "SOURCE") if "=" in source else None for source in options.sources]
    if any(named) and not all(named):
        raise ConfigError("some sources have a name (TASK=FILE) and others have none: name all")
    texts = dict(_pair(text, "--text") for text in options.text)
    files: dict[str, list[str]] = {}
    for pair in filter(None, named):
        files.setdefault(pair[0], []).append(pair[1])
    data = load_episodes(files or options.sources, action_range=options.action_range)
    if unknown := [task for task in texts if task not in data.tasks]:
        raise ConfigError(f"--text: there is no task {unknown[0]!r}; has {', '.join(data.tasks)}")
    if options.minari:
        export_minari(data, options.minari, texts=texts)
    elif options.lerobot:
        export_lerobot(data, options.lerobot, texts=texts)
    else:
        if Path(options.hdf5).exists():
            raise ConfigError(f"--hdf5 {options.hdf5} is there already: name a new file")
        export_d4rl(data, options.hdf5)
    print(
        f"{options.minari or options.lerobot or options.hdf5}: {len(data.tasks)} tasks, "
        f"{len(data.lengths)} episodes, {len(data.transitions)} transitions"
    )
    return 0


def _pair(given: str, what: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{what} is {given!r}: give TASK=...")
    return key, value


def _list() -> int:
    """Print what is in the cache, one line for each dataset, model and file of embeddings."""
    root = cache_root()
    print(f"{root} ({CACHE_VARIABLE} names another)")
    for pattern in ("data/*/*", "models/*", "embeddings/*"):
        for path in sorted(root.glob(pattern)):
            if path.name.startswith("."):  # locks, and what is being written
                continue
            megabytes = used_bytes(path) / 1e6
            kind = path.parent.relative_to(root).as_posix()
            print(f"{kind:18s} {megabytes:8.1f} MB  {_content(path):26s}  {path}")
    return 0


def _content(path: Path) -> str:
    from llmdpd_torchrl.data.manifest import MANIFEST_NAME, Manifest

    if not (path / MANIFEST_NAME).is_file():
        return "not complete" if path.parent.name == "metaworld" else ""
    try:
        tasks = Manifest.read(path).tasks
    except DataError:
        return f"damaged {MANIFEST_NAME}"
    return f"{len(tasks)} tasks, {sum(len(task.episodes) for task in tasks.values())} episodes"
