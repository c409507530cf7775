"""Tasks of one's own, as nobody prepared the code for them: four runs, and wrong inputs.

    python -m benchmarks.own                # records, exports, trains, evaluates; writes own.md
    python -m benchmarks.own folder=FOLDER  # the same; what is in the folder is not made again
    python -m benchmarks.own runs=[corners] updates=200    # a try, which writes nothing

Each run is a file of ``examples/own_tasks``, its data are recorded by ``llmdpd record`` and, where
it reads Minari's or LeRobot's, written by ``llmdpd data export``. ``own_raw.json`` has the results
by task; every input of ``own_mistakes.py`` is given to its command, which must end with exit code 2
and one line that says what is wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, write_figures
from benchmarks.own_mistakes import MISTAKES
from benchmarks.studies.options import run_command
from llmdpd_torchrl.__main__ import main as llmdpd
from llmdpd_torchrl.data import load_episodes
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.experiments.own_tasks import OwnTasks
from llmdpd_torchrl.utils.errors import ConfigError
from llmdpd_torchrl.utils.files import write_text

EXAMPLES = Path(__file__).parents[1] / "examples" / "own_tasks"
CORNERS = {"ne": "upper right", "nw": "upper left", "se": "lower right", "sw": "lower left"}
SPEEDS = {"Reach the flag.": "0.0", "Race past the flag.": "0.03",
          "Pass the flag at a good speed.": "0.02"}  # fmt: skip


@dataclass
class Options:
    """Settings of the command."""

    runs: Sequence[str] = field(default=("corners", "pendulum", "mountain_car", "corners_lerobot"))
    updates: int = 3000
    seeds: Sequence[int] = (0,)
    folder: str = ""  # of data and runs; default: a temporary one
    mistakes: bool = True


def call(*arguments: str) -> tuple[int, str, str]:
    """Run a command of ``llmdpd`` here; its exit code and what it wrote to both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = llmdpd(list(arguments))
        except SystemExit as ended:  # argparse's
            code = int(ended.code or 0)
    return code, out.getvalue(), err.getvalue()


def do(*arguments: str) -> None:
    """Run a command that has to succeed."""
    code, _, err = call(*arguments)
    if code:
        raise ConfigError(f"llmdpd {' '.join(arguments)}: exit code {code}: {err.strip()}")


def record(task: str, policy: str, name: str, *options: str, episodes: int = 60) -> None:
    """Record episodes into a file here, unless they are there."""
    if not Path(name).exists():
        do("record", task, "--policy", policy, "--episodes", str(episodes), "--noise", "0.3",
           "--output", name, *options)  # fmt: skip


def record_corners() -> None:
    """The toy's four files."""
    module = "llmdpd_torchrl.envs.corners"
    for corner in CORNERS:
        record("llmdpd/Corner-v0", f"{module}:go_{corner}", f"{corner}.npz", "--import", module,
               "--option", f"corner={corner}", "--success-info", "is_success",
               "--steps-after-success", "10")  # fmt: skip


def record_pendulum() -> None:
    """A file for each gravity."""
    for gravity in (6, 8, 10, 12):
        record("Pendulum-v1", f"controllers:gravity_{gravity}", f"gravity_{gravity}.npz",
               "--option", f"g={gravity}.0", episodes=20)  # fmt: skip


def export_mountain_car() -> None:
    """Minari's data set of three tasks."""
    if Path("minari/mountain-car/flag-v0").exists():
        return
    sources, texts = [], []
    for place, (text, speed) in enumerate(SPEEDS.items()):
        name = f"car_{place}.npz"
        record("MountainCarContinuous-v0", "controllers:rock", name, "--option",
               f"goal_velocity={speed}", episodes=20)  # fmt: skip
        sources += [f"car_{place}={name}"]
        texts += ["--text", f"car_{place}={text}"]
    do("data", "export", *sources, "--minari", "mountain-car/flag-v0", *texts)


def export_corners() -> None:
    """LeRobot's folder of the toy's tasks."""
    record_corners()
    if Path("corners_lerobot").exists():
        return
    texts = [f"{corner}=Go to the {where} corner." for corner, where in CORNERS.items()]
    words = [word for text in texts for word in ("--text", text)]
    sources = [f"{corner}={corner}.npz" for corner in CORNERS]
    do("data", "export", *sources, "--lerobot", "corners_lerobot", *words)


PREPARE: dict[str, Callable[[], None]] = {
    "corners": record_corners,
    "pendulum": record_pendulum,
    "mountain_car": export_mountain_car,
    "corners_lerobot": export_corners,
}


def train(name: str, updates: int, seed: int) -> dict[str, float]:
    """Success, or score, by task, of one run of a file."""
    output = f"runs/{name}-seed{seed}"
    do("train-own", f"tasks={name}.yaml", "prompt=trajectory", f"trainer.total_updates={updates}",
       f"seed={seed}", f"output_dir={output}", "until=evaluate", "progress=false")  # fmt: skip
    found = json.loads((Path(output) / "results.json").read_text())
    return {task["task"]: 100 * task["success_rate"] if task["score"] is None else task["score"]
            for task in found["summary"]["tasks"]}  # fmt: skip


def round_trips() -> int:
    """How many of three formats give back, bit for bit, what was exported."""
    source = Path("ne.npz").resolve()
    original = load_episodes(source).transitions
    with _new_folder(""):
        do("data", "export", f"ne={source}", "--hdf5", "back.hdf5")
        do("data", "export", f"ne={source}", "--lerobot", "back")
        do("data", "export", f"ne={source}", "--minari", "corners/back-v0")
        sources = ("back.hdf5", "back", "minari:corners/back-v0")
        return sum(bool((load_episodes(s).transitions == original).all()) for s in sources)


def clear_mistakes() -> list[dict[str, Any]]:
    """Of each wrong input, what the command said, and whether that is one clear line."""
    rows = []
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            mistake.prepare(Path(folder))
            code, _, err = call(*mistake.arguments)
        lines = [line for line in err.splitlines() if line.strip() and not line.startswith("note:")]
        is_clear = code == 2 and len(lines) == 1 and mistake.says in lines[0]
        rows.append({"arguments": list(mistake.arguments), "wrong": mistake.wrong, "code": code,
                     "lines": lines, "is_clear": is_clear})  # fmt: skip
    return rows


@contextlib.contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """The current folder for a while, with Minari's data in it; without a name a temporary one."""
    with contextlib.ExitStack() as stack:
        folder = Path(name or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
        stack.enter_context(contextlib.chdir(folder))
        try:
            yield folder
        finally:
            os.environ.pop("MINARI_DATASETS_PATH")
            if before is not None:
                os.environ["MINARI_DATASETS_PATH"] = before


def _imported_lines(name: str) -> int:
    """Lines of Python beside a YAML file that its training and evaluation import."""
    own = OwnTasks.read(EXAMPLES / f"{name}.yaml").content.imports
    files = (EXAMPLES / f"{module}.py" for module in own)
    return sum(len(file.read_text().splitlines()) for file in files if file.exists())


def run(options: Options) -> None:
    """Run what is chosen and write page, figures and raw results.

    Raises:
        UserError: if a command fails that should not.
    """
    if unknown := [name for name in options.runs if name not in PREPARE]:
        raise ConfigError(f"runs has {unknown[0]!r}: use some of {', '.join(PREPARE)}")
    found: dict[str, list[dict[str, float]]] = {}
    with _new_folder(options.folder) as folder:
        for path in (*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.py")):
            (folder / path.name).write_bytes(path.read_bytes())
        for name in options.runs:
            PREPARE[name]()
            found[name] = [train(name, options.updates, seed) for seed in options.seeds]
            print(name, found[name], flush=True)
        record_corners()
        exact = round_trips()
    mistakes = clear_mistakes() if options.mistakes else []
    for row in mistakes:
        if not row["is_clear"]:
            print("not clear:", row, flush=True)
    figures = {
        "lines_own_env": sum(map(_imported_lines, options.runs)),
        "families_run": sum(len(runs) > 0 for runs in found.values()),
        "wrong_inputs_clear": sum(row["is_clear"] for row in mistakes),
        "wrong_inputs_tried": len(mistakes),
        "round_trips_exact": exact,
    }
    for name, runs in found.items():
        for task in runs[0]:
            figures[f"{name}_{task}"] = sum(one[task] for one in runs) / len(runs)
    if replace(options, folder="") != Options():  # a try
        return
    rows = [
        (name, task, *(f"{one[task]:.0f}" for one in runs))
        for name, runs in found.items() for task in runs[0]
    ]  # fmt: skip
    seeds = [f"seed {seed}" for seed in options.seeds]
    page = _PAGE + Table(("run", "task", *seeds), rows).markdown() + "\n"
    write_text(RESULTS / "own.md", page)
    raw = {"runs": found, "mistakes": mistakes}
    write_figures("own", figures, raw, "python -m benchmarks.own")


_PAGE = """\
# Tasks of one's own

Each run is a YAML file of [`examples/own_tasks`](../../examples/own_tasks), trained on recorded
episodes and prompted with one demonstration of each task; the last task of each file was never
trained on. Success, or the pendulum's score, in percent, of 10 episodes a task.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run, Options, arguments)


if __name__ == "__main__":
    sys.exit(main())
