"""The command ``llmdpd``, which is also ``python -m llmdpd_torchrl``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from llmdpd_torchrl import __version__

COMMANDS = {
    "train": "collect Meta-World data, train, evaluate on seen and unseen tasks, report",
    "train-d4rl": "the same on recorded locomotion: D4RL, Minari, HDF5 files",
    "train-own": "the same on tasks of your own: a YAML file of environments, data and texts",
    "eval": "evaluate a saved policy on tasks, texts and demonstrations of your own",
    "audit": "find out whether a saved policy listens to its text and its demonstration",
    "video": "record a saved policy as an MP4",
    "record": "record episodes of an environment: by hand, by a function, by a policy",
    "report": "turn a folder of runs into tables, plots and one HTML page",
    "data": "collect, fetch or export datasets, list those in the cache, show one",
    "prompts": "list, embed and compare text prompts",
    "hub": "publish a policy on the Hugging Face Hub, or download one",
    "check-env": "check an environment before it is trained or evaluated on",
    "info": "show versions, devices, rendering and folders",
}
"""Each in the file of its name in ``llmdpd_torchrl/commands``, imported when it is run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in COMMANDS:
        command = importlib.import_module(f"llmdpd_torchrl.commands.{name.replace('-', '_')}")
        return int(command.main(given[1:]))
    if name == "--version":
        print(f"llmdpd_torchrl {__version__}")
    elif name in ("-h", "--help"):
        print("usage: llmdpd COMMAND ...\n")
        print("Offline RL policies that act on tasks they were never trained on.\n")
        for command_name, about in COMMANDS.items():
            print(f"  {command_name:12}{about}")
        print(
            "\n`llmdpd COMMAND --help` lists a command's options, `llmdpd --version` the version."
        )
        print("Exit codes: 0, 1 if something is missing from the result, 2 for a user error.")
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}: {hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
