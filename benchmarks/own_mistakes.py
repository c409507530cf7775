"""Wrong inputs of people who bring their own tasks, and what is to be said of each, in one line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdpd_torchrl.collection.record import record_episodes
from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, corners

FILE = """\
import: [llmdpd_torchrl.envs.corners]
env: llmdpd/Corner-v0
success: {min_reward: -0.2}
tasks:
  ne: {options: {corner: ne}, data: ne.npz, text: Go to the upper right.}
  nw: {options: {corner: nw}, data: nw.npz, text: Go to the upper left.}
held_out:
  sw: {options: {corner: sw}, data: sw.npz, text: Go to the lower left.}
"""
ENVIRONMENTS = """\
import gymnasium
import numpy as np
from gymnasium import spaces

class Any(gymnasium.Env):
    def __init__(self, shape=(2,), high=1.0, dtype="float32"):
        self.observation_space = spaces.Box(0, 1, shape, np.dtype(dtype).type)
        self.action_space = spaces.Box(-high, high, (2,))
    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}
    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}

gymnasium.register("mistake/Any-v0", entry_point=Any, max_episode_steps=5)
gymnasium.register("mistake/Endless-v0", entry_point=Any)
"""
Arrays = dict[str, NDArray[Any]]
Change = Callable[[Arrays], Any]
_TRAIN = ("train-own", "tasks=corners.yaml", "until=train", "preset=smoke", "progress=false")


@dataclass(frozen=True)
class Mistake:
    """A wrong input.

    Attributes:
        wrong: what is wrong, in words.
        arguments: of ``llmdpd``.
        says: a part of the line that says so.
        text: of the task file.
        change: what is done to the arrays of the recorded files.
        files: further files by name.
    """

    wrong: str
    arguments: tuple[str, ...]
    says: str
    text: str = FILE
    change: Change | None = None
    files: Mapping[str, str | bytes] | None = None

    def prepare(self, folder: Path) -> None:
        """Write all files into a folder."""
        (folder / "corners.yaml").write_text(self.text)
        (folder / "mistaken_envs.py").write_text(ENVIRONMENTS)
        for corner in ("ne", "nw", "sw"):
            arrays = {key: column.copy() for key, column in recorded(corner).items()}
            if self.change is not None:
                self.change(arrays)
            np.savez(folder / f"{corner}.npz", **arrays)  # type: ignore[arg-type]
        for name, content in (self.files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@functools.cache
def recorded(corner: str) -> Arrays:
    """A few episodes of the toy."""
    rule = SuccessRule(info="is_success")
    env = GymnasiumEnv("llmdpd/Corner-v0", options={"corner": corner}, success=rule)
    return record_episodes(env, corners.go_to(corner), 4, noise=0.2, progress=False)


def _file(wrong: str, old: str, new: str, says: str, **files: str | bytes) -> Mistake:
    """One in the task file."""
    assert old in FILE, old
    return Mistake(wrong, _TRAIN, says, FILE.replace(old, new), files=files or None)


def _data(wrong: str, change: Change, says: str) -> Mistake:
    """One in the recorded files."""
    return Mistake(wrong, _TRAIN, says, change=change)


def _setting(wrong: str, setting: str, says: str, text: str = FILE) -> Mistake:
    """One on the command line of a training."""
    return Mistake(wrong, (*_TRAIN, setting), says, text)


def _record(wrong: str, says: str, *options: str) -> Mistake:
    """One on the command line of a recording."""
    common = ("record", "llmdpd/Corner-v0", "--import", "llmdpd_torchrl.envs.corners")
    return Mistake(wrong, (*common, *options), says)


def _both(key: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """A change of a column and, of observations, of their successors."""

    def apply(arrays: Arrays) -> None:
        names = [key, "next_observations"] if key == "observations" else [key]
        arrays.update({name: change(arrays[name]) for name in names})

    return apply


def _poke(key: str, place: Any, value: float) -> Change:
    def apply(arrays: Arrays) -> None:
        arrays[key] = arrays[key].astype(np.float32)
        arrays[key][place] = value

    return apply


def _without_ends(arrays: Arrays) -> None:
    for key in ("timeouts", "next_observations"):
        del arrays[key]


def _first_episode(arrays: Arrays) -> None:
    end = int(np.flatnonzero(arrays["terminals"] | arrays["timeouts"])[0]) + 1
    arrays.update({key: column[:end] for key, column in arrays.items()})


_TEXT = "text: Go to the upper right."
_ENV = "env: llmdpd/Corner-v0"
_IMPORT = "[llmdpd_torchrl.envs.corners]"
_RULE = "{min_reward: -0.2}"
_INFO = json.dumps({"codebase_version": "v2.1"})
_ANY = FILE.replace(_IMPORT, "[mistaken_envs]").replace("corner: ne", "").replace("corner: nw", "")
_ANY = _ANY.replace("corner: sw", "").replace("llmdpd/Corner-v0", "mistake/Any-v0")


def _any(wrong: str, old: str, new: str, says: str) -> Mistake:
    """One in an environment of somebody's own."""
    assert old in _ANY, old
    return Mistake(wrong, _TRAIN, says, _ANY.replace(old, new))


MISTAKES: tuple[Mistake, ...] = (
    # --- the task file
    _file("a task twice", "  nw:", "  ne:", "'ne' is there twice"),
    _file("a task trained on and held out", "  sw:", "  ne:", "among tasks and held_out"),
    _file("no data", "data: ne.npz, ", "", "tasks.ne.data is missing"),
    _file("an empty list of data", "data: ne.npz", "data: []", "tasks.ne.data is []"),
    _file("a number as data", "data: ne.npz", "data: 3", "tasks.ne.data is 3"),
    _file("a misspelt key of a task", _TEXT, f"{_TEXT[:-1]}., txt: Go", "tasks.ne.txt"),
    _file("a misspelt key of the file", _ENV, f"{_ENV}\nmaxsteps: 3", "maxsteps: there is no such"),
    _file("a word as a threshold", "-0.2", "high", "success.min_reward is 'high'"),
    _file("an empty rule", _RULE, "{}", "give one of info, min_reward"),
    _file("two rules", _RULE, "{min_reward: 0, min_return: 1}", "give one of info, min_reward"),
    _file("an unknown rule", _RULE, "{solved: true}", "success.solved: there is no such"),
    _file("neither success nor references", f"success: {_RULE}\n", "", "neither success nor ref"),
    _file("one reference", f"success: {_RULE}", "references: [1]", "references is [1]"),
    _file("references the wrong way", f"success: {_RULE}", "references: [5, 1]",
          "the return that scores 100 must be larger"),
    _file("a list as text", _TEXT, "text: [Go]", "text of ne is ['Go']"),
    _file("an unknown part of a text", _TEXT, "text: {words: Go}", "text of ne is {'words': 'Go'}"),
    _file("an empty text", _TEXT, "text: ' '", "text of ne: task is ' '"),
    _file("a text missing where texts are read", f", {_TEXT}", "", "there is no text for ne"),
    _file("no task", FILE, "tasks: {}", "tasks is {}: it must not be empty"),
    _file("a list as file", FILE, "[1, 2]", "is no mapping with the key tasks"),
    _file("broken YAML", FILE, "tasks: {a: {data: [", "not valid YAML"),
    _file("YAML that builds objects", FILE, "tasks: !!python/name:os.system", "not valid YAML"),
    _file("YAML that repeats itself", FILE, "tasks: &a {b: {data: x.npz}}\nheld_out: *a\n",
          "aliases (*name) are not read"),
    _file("another family", _ENV, f"{_ENV}\nfamily: isaac", "family is 'isaac'"),
    _file("fields beyond the observation", _ENV, f"{_ENV}\nobservation_fields: {{hand: [0, 9]}}",
          "observation_fields.hand is [0, 9]"),
    _file("a frame of no field", _ENV,
          f"{_ENV}\nretrieval: {{frames: [{{values: [elbow], weights: [1.0]}}]}}",
          "the frame reads 'elbow'"),
    _file("a frame without weights", _ENV,
          f"{_ENV}\nretrieval: {{frames: [{{values: [state]}}]}}", "1 values has 0 weights"),
    # --- environments
    _file("an environment that nobody registers", "Corner-v0", "Edge-v0", "llmdpd/Edge-v0"),
    _file("a module that is not there", _IMPORT, "[no_such_module]", "import no_such_module"),
    _file("a module that raises", _IMPORT, "[bad_module]", "import bad_module: ZeroDivisionError",
          **{"bad_module.py": "1 / 0"}),
    _file("an option that the environment refuses", "corner: ne", "corner: up", "KeyError"),
    _file("an option that it lacks", "corner: ne", "edge: 1", "unexpected keyword argument 'edge'"),
    Mistake("an environment for one task only", _TRAIN, "nw has no env",
            FILE.replace(f"{_ENV}\n", "").replace("ne: {", f"ne: {{{_ENV}, ")),
    _any("discrete actions", "mistake/Any-v0", "CartPole-v1", "they must be a vector (Box)"),
    _any("actions without bounds", "options: {}, data: ne", "options: {high: .inf}, data: ne",
         "no finite bounds"),
    _any("pictures", "options: {}, data: ne", "options: {shape: [9, 9, 3], dtype: uint8}, data: ne",
         "observations are images [9, 9, 3]"),
    _any("no time limit", "mistake/Any-v0", "mistake/Endless-v0", "nothing ends its episodes"),
    # --- data
    _data("an array is missing", lambda a: a.pop("rewards"), "has no array 'rewards'"),
    _data("narrow observations", _both("observations", lambda c: c[:, :1]),
          "observations have 1 entries, those of llmdpd/Corner-v0 2"),
    _data("narrow actions", _both("actions", lambda c: c[:, :1]), "actions have 1 entries"),
    _data("actions beyond their bounds", _both("actions", lambda c: 5 * c), "action reaches from"),
    _data("millimetres", _both("observations", lambda c: 1000 * c), "look at their units"),
    _data("an observation that is not finite", _poke("observations", (3, 0), np.nan),
          "observation is not finite in 1 of"),
    _data("a reward that is not finite", _poke("rewards", 2, np.inf), "reward is not finite in 1"),
    _data("flags that are none", _poke("terminals", 0, 0.5), "terminals must hold flags"),
    _data("words", _both("actions", lambda c: c.astype(str)), "actions is of type <U"),
    _data("rows that disagree", _both("rewards", lambda c: c[:-1]), "every array needs one row"),
    _data("nothing says where episodes end", _without_ends, "give max_episode_steps"),
    _data("no row", lambda a: a.update({k: c[:0] for k, c in a.items()}), "has no transition"),
    _data("no success", _both("rewards", lambda c: c - 9), "no successful trajectory"),
    _data("one episode a task", _first_episode, "only trajectory prompt is"),
    _file("a file that is not there", "ne.npz", "none.npz", "none.npz: there is no such file"),
    _file("a folder without data", "ne.npz", "empty", "has no .hdf5",
          **{"empty/README.txt": "nothing"}),
    _file("a broken file", "ne.npz", "broken.npz", "cannot be read as .npz",
          **{"broken.npz": b"PK\x03\x04"}),
    _file("a text as HDF5", "ne.npz", "bad.hdf5", "cannot be read as HDF5",
          **{"bad.hdf5": "words"}),
    _file("a task that a file lacks", "ne.npz", "'ne.npz::up'", "has no task 'up'"),
    _file("an unknown name of D4RL's", "ne.npz", "hoper-medium-v2", "D4RL has no dataset"),
    _file("an unknown data set of Minari's", "ne.npz", "minari:no/such-v0", "cannot be loaded"),
    _file("an old LeRobot folder", "ne.npz", "lr", "is of LeRobot's version v2.1",
          **{"lr/meta/info.json": _INFO}),
    _file("keys that are not there", _ENV, f"{_ENV}\nkeys: {{observations: obs}}",
          "has no array 'obs', named by keys"),
    # --- settings
    Mistake("no task file", ("train-own",), "tasks"),
    Mistake("a task file that is not there", ("train-own", "tasks=no.yaml"), "no.yaml"),
    _setting("an unknown setting", "evaluation.goals=3", "evaluation.goals"),
    _setting("an unknown algorithm", "algorithm=sac", "algorithm"),
    _setting("a denoiser that is not there", "network.denoiser=no_parts:Wide", "network.denoiser"),
    _setting("no demonstration", "evaluation.demonstrations=0", "evaluation.demonstrations is 0"),
    _setting("evaluation in between without environments", "evaluation.every=100",
             "no task of corners.yaml has an env",
             FILE.replace(f"{_ENV}\n", "")),
    # --- recordings and exports
    _record("a policy that is none", "give random, hand, MODULE:FUNCTION", "--policy", "walk",
            "--output", "x.npz"),
    _record("a function that a module lacks", "has no function 'up'", "--policy",
            "llmdpd_torchrl.envs.corners:up", "--output", "x.npz"),
    _record("no episode", "--episodes is 0", "--policy", "random", "--episodes", "0", "--output",
            "x.npz"),
    _record("a file that is there", "name a new file", "--policy", "random", "--output", "ne.npz"),
    _record("an option without a value", "--option is 'corner'", "--policy", "random", "--option",
            "corner", "--output", "x.npz"),
    Mistake("an export without a name", ("data", "export", "a=ne.npz", "nw.npz", "--hdf5", "x.h5"),
            "name all"),
    Mistake("an export onto a folder", ("data", "export", "ne.npz", "--lerobot", "."),
            "is there already"),
    Mistake("a text of no task", ("data", "export", "ne.npz", "--hdf5", "x.h5", "--text", "up=Up."),
            "there is no task 'up'"),
    Mistake("a policy that is not there", ("eval", "nothing", "--task-file", "corners.yaml"),
            "no policy in nothing"),
)  # fmt: skip
