"""Inputs that are wrong, and a word that the one line about each must have.

Each case is the entry that it is given to (see ``entries.py``), what it is given, and the word.
``UNCLEAR`` are those whose line is still to be written; a test fails as soon as it has been.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["CASES", "Case"]


class Case(NamedTuple):
    """One input that is wrong.

    Attributes:
        entry: a name of ``entries.ENTRIES``.
        given: to it.
        says: must be in the line.
    """

    entry: str
    given: Any
    says: str


_FIELDS = "".join(
    f"    {name}: x\n" for name in ("task", "robot", "objective", "constraints", "success")
)
_TASK = f"  reach-v3:\n{_FIELDS}"
_NAN = float("nan")
_STATE = "components/0002-trainer/state"
_MOVED = {"size": 39, "fields": {"goal_position": [0, 3]}}


def _cases() -> dict[str, list[tuple[Any, str]]]:
    return {
        "train": [
            (["tasks.split=ml99"], "ml99"),
            (["tasks.split=mine", "tasks.train=[reach-v9]", "tasks.held_out=[]"], "reach-v9"),
            (["tasks.split=mine", "tasks.train=[]", "tasks.held_out=[reach-v3]"], "train"),
            (["tasks.split=mine", "tasks.train=[reach-v3]", "tasks.held_out=[reach-v3]"], "reach"),
            (["tasks.split=mine", "tasks.train=reach-v3", "tasks.held_out=[]"], "tasks.train"),
            (["prompt=all"], "all"),
            (["prompt=3"], "prompt"),
            (["until=never"], "until"),
            (["force=[everything]"], "force"),
            (["optim.batch_size=0"], "optim.batch_size"),
            (["optim.batch_size=many"], "optim.batch_size"),
            (["optim.batch_size=null"], "optim.batch_size"),
            (["trainer.total_updates=-1"], "trainer.total_updates"),
            (["trainer.total_updates=1.5"], "trainer.total_updates"),
            (["trainer.log_every=0"], "trainer.log_every"),
            (["video.every=0"], "video.every"),
            (["video.tasks=[reach-v9]"], "reach-v9"),
            (["evaluation.demonstrations=0"], "evaluation.demonstrations"),
            (["evaluation.every=-1"], "evaluation.every"),
            (["evaluation.every=7"], "trainer.log_every"),
            (["evaluation.confusion=some"], "evaluation.confusion"),
            (["evaluation.backend=slurm"], "slurm"),
            (["evaluation.workers=0"], "workers"),
            (["evaluation.control=upside_down"], "upside_down"),
            (["evaluation.episodes_per_task=0"], "episodes_per_task"),
            (["evaluation.episodes_per_task=ten"], "episodes_per_task"),
            (["evaluation.max_steps=0"], "max_steps"),
            (["evaluation.seed=first"], "evaluation.seed"),
            (["data.episodes_per_task=0"], "episodes_per_task"),
            (["data.episodes_per_task=x"], "episodes_per_task"),
            (["data.noise_levels=[]"], "noise_levels"),
            (["data.noise_levels=[-1.0]"], "noise_levels"),
            (["data.noise_levels=[loud]"], "noise_levels"),
            (["data.max_steps=0"], "max_steps"),
            (["data.steps_after_success=-1"], "steps_after_success"),
            (["data.seed=1.5"], "data.seed"),
            (["network.conditioning=guessed"], "network.conditioning"),
            (["network.hidden=[]"], "network.hidden"),
            (["network.hidden=[0]"], "network.hidden"),
            (["network.diffusion_steps=0"], "network.diffusion_steps"),
            (["network.diffusion_steps=few"], "network.diffusion_steps"),
            (["network.text_dropout=1.5"], "network.text_dropout"),
            (["network.critics=0"], "network.critics"),
            (["+network.unheard=1"], "unheard"),
            (["+loss.unheard=1"], "unheard"),
            (["loss.alignment=0.5"], "loss.alignment"),
            (["prompt=text", "text_encoder=unheard-of"], "unheard-of"),
            (["prompt=text", "text_encoder=null"], "encoder"),
            (["output_dir=/proc/nowhere"], "output_dir"),
            (["output_dir=/dev/null/x"], "output_dir"),
        ],
        "data": [
            ([], "required"),
            (["fly"], "fly"),
            (["collect"], "folder"),
            (["collect", "d", "--tasks", "reach-v9"], "reach-v9"),
            (["collect", "d", "--tasks", "ml99"], "ml99"),
            (["collect", "d", "--episodes", "0"], "episodes"),
            (["collect", "d", "--episodes", "many"], "--episodes"),
            (["collect", "d", "--noise", "loud"], "--noise"),
            (["collect", "d", "--noise", "-0.5"], "noise_levels"),
            (["collect", "d", "--seed", "1.5"], "--seed"),
            (["collect", "/proc/nowhere", "--tasks", "reach-v3"], "/proc/nowhere"),
            (["collect", "d", "--loudly"], "--loudly"),
            (["show"], "folder"),
            (["show", "nowhere"], "manifest.json"),
            ((["show", "."], {"manifest.json": "{"}), "not valid JSON"),
            ((["show", "."], {"manifest.json": "[]"}), "format"),
            ((["show", "."], {"manifest.json": b"\xff\xfe"}), "not valid JSON"),
            ((["show", "."], {"manifest.json": ""}), "not valid JSON"),
        ],
        "dataset": [
            (["push-v3"], "push-v3"),
            (("manifest.json", None), "manifest.json is missing"),
            (("manifest.json", "{"), "not valid JSON"),
            (("manifest.json", 100), "not valid JSON"),
            (("manifest.json", {"format": "other"}), "format"),
            (("manifest.json", {"format_version": 99}), "99"),
            (("manifest.json", {"tasks": []}), "tasks"),
            (("manifest.json", {"tasks.reach-v3": {}}), "reach-v3"),
            (("manifest.json", {"tasks.reach-v9": {}}), "reach-v9"),
            (("manifest.json", {"tasks.reach-v3.sha256": "0"}), "data_hash"),
            (("manifest.json", {"data_hash": "0"}), "data_hash"),
            (("manifest.json", {"task_table": "reach-v3"}), "task_table"),
            (("manifest.json", {"observation_layout": None}), "observation_layout"),
            (("manifest.json", {"observation_layout": {"size": 7}}), "shape"),
            (("manifest.json", {"action_size": "four"}), "action_size"),
            (("manifest.json", {"action_size": 7}), "shape"),
            (("reach-v3.safetensors", None), "missing"),
            (("reach-v3.safetensors", 50), "damaged"),
            (("reach-v3.safetensors", b""), "damaged"),
            (("reach-v3.safetensors", b"\x80\x04."), "damaged"),
        ],
        "policy": [
            (("policy.json", None), "policy.json is missing"),
            (("policy.json", "{"), "not valid JSON"),
            (("policy.json", 200), "not valid JSON"),
            (("policy.json", b"\x80\x04."), "not valid JSON"),
            (("policy.json", "[" * 100_000), "not valid JSON"),
            (("policy.json", {"format": "other"}), "format"),
            (("policy.json", {"format_version": 3}), "format_version"),
            (("policy.json", {"network": None}), "description"),
            (("policy.json", {"network.hidden": "wide"}), "description"),
            (("policy.json", {"network.hidden": [9]}), "asks for"),
            (("policy.json", {"network.prompt": "all"}), "all"),
            (("policy.json", {"network.unheard": 1}), "unheard"),
            (("policy.json", {"network.observation_fields": {"a": [0]}}), "observation"),
            (("policy.json", {"network.observation_fields": {}}), "goal_position"),
            (("policy.json", {"network.frame": 5}), "description"),
            (("policy.json", {"network.activation": "cosh"}), "cosh"),
            (("policy.json", {"network.text_dim": -1}), "text_dim"),
            (("policy.json", {"weights": {}}), "description"),
            (("policy.json", {"weights": None}), "description"),
            (("policy.json", {"info": 7}), "description"),
            (("policy.safetensors", None), "missing"),
            (("policy.safetensors", 1000), "damaged"),
            (("policy.safetensors", b""), "damaged"),
            (("policy.safetensors", b"\x80\x04."), "damaged"),
            (("other.pickle", b"\x80\x04."), "other.pickle"),
            (("pytorch_model.bin", b"\x80\x04."), "pytorch_model.bin"),
            ({"observation_layout": {"size": 7, "fields": {}}}, "39 entries"),
            ({"observation_layout": _MOVED}, "goal_position"),
        ],
        "checkpoint": [
            (("seal.json", None), "none of the 1 checkpoints is whole"),
            (("seal.json", "{}"), "none of the 1 checkpoints is whole"),
            (("seal.json", 10), "none of the 1 checkpoints is whole"),
            (("manifest.json", {"format": "x"}), "none of the 1 checkpoints is whole"),
            ((f"{_STATE}.json", None), "none of the 1 checkpoints is whole"),
            ((f"{_STATE}.json", "{}"), "none of the 1 checkpoints is whole"),
            ((f"{_STATE}.safetensors", 90), "none of the 1 checkpoints is whole"),
            ((f"{_STATE}.pt", b"\x80\x04."), "none of the 1 checkpoints is whole"),
            (("more.json", "{}"), "none of the 1 checkpoints is whole"),
            ({"data_hash": "another"}, "data_hash"),
            ({"unheard": 1}, "unheard"),
        ],
        "training": [
            ({"updates": 40}, "total_updates"),
            ({"log_every": 10, "every": 10}, "log_every"),
            ({"every": 0}, "every is 0"),
            ({"every": 7}, "log_every"),
            ({"keep": 0}, "keep is 0"),
            ({"milestones": -5}, "milestones is -5"),
            ({"best": ("eval/success_seen", "highest")}, "highest"),
            ({"updates": 0}, "total_updates"),
            ({"log_every": 0}, "log_every"),
        ],
        "hdf5": [
            (b"", "HDF5"),
            (b"\x89HDF\r\n\x1a\n" + b"\x00" * 40, "HDF5"),
            (b"\x80\x04.", "HDF5"),
            ({"observations": None}, "observations"),
            ({"actions": None}, "actions"),
            ({"rewards": None}, "rewards"),
            ({"terminals": None}, "terminals"),
            ({"timeouts": None, "next_observations": None}, "timeouts"),
            ({"actions": np.zeros((5, 2), np.float32)}, "actions"),
            ({"rewards": np.zeros((6, 4), np.float32)}, "reward"),
            ({"observations": np.zeros((0, 3), np.float32)}, "shape"),
            ({"observations": np.full((6, 3), _NAN, np.float32)}, "not finite"),
            ({"rewards": np.full(6, np.inf, np.float32)}, "not finite"),
            ({"actions": np.full((6, 2), 7, np.float32)}, "action_range"),
            ({"terminals": np.full(6, 3, np.int64)}, "flags"),
            ({"observations": np.array(["x"] * 6, "S1")}, "observations"),
            ({"observations": np.float32(1.0)}, "observations"),
            (({}, {"action_range": (1.0, 1.0)}), "action_range"),
            (({}, {"task_key": "level"}), "level"),
            (({}, {"infos": ["unheard"]}), "unheard"),
        ],
        "episodes": [
            ("nowhere.hdf5", "nowhere.hdf5"),
            ("hopper-perfect-v9", "hopper-perfect-v9"),
            ([], "at least one"),
            (".", "folder"),
        ],
        "prompt file": [
            ("", "empty"),
            ("tasks", "mapping"),
            ("tasks: []", "mapping"),
            ("tasks: {}", "mapping"),
            ("other: {}", "other"),
            ("tasks:\n  a: [", "YAML"),
            ("tasks:\n\ta: b", "YAML"),
            ("tasks:\n  a: text", "mapping"),
            ("tasks:\n  a:\n    task: x", "lacks"),
            ("tasks:\n  a:\n    task: 5", "must be a text"),
            ("tasks:\n  a:\n    task: ''", "empty"),
            ("tasks:\n  a:\n    unheard: x", "unheard"),
            (f"tasks:\n{_TASK}{_TASK}", "twice"),
            (f"tasks:\n{_TASK}    paraphrases: one", "list"),
            (f"tasks:\n{_TASK}    paraphrases: [1]", "must be a text"),
            (b"\xff\xfe\x00", "can not read"),
            (b"tasks: \x00", "YAML"),
            ("tasks: !!python/object/apply:os.system ['true']", "mapping"),
            ("tasks: &a\n  x: *b\n", "YAML"),
        ],
        "prompts": [
            ([], "required"),
            (["list", "--file", "nowhere.yaml"], "nowhere.yaml"),
            (["list", "--suite", "unheard"], "unheard"),
            ((["list", "--file", "p.yaml"], {"p.yaml": "tasks: ["}), "YAML"),
            (["embed"], "required"),
            (["embed", "nowhere.yaml"], "nowhere.yaml"),
            (["embed", "--builtin", "--encoder", "minilm"], "--builtin"),
            (["nearest", ""], "empty"),
            (["nearest", "open the door", "--count", "0"], "--count"),
            (["nearest", "open the door", "--count", "few"], "--count"),
            (["nearest", "open the door", "--encoder", "unheard-of"], "unheard-of"),
            (["nearest", "open the door", "--option", "layer"], "NAME=VALUE"),
            (["nearest", "open the door", "--option", "unheard=1"], "unheard"),
            (["sing"], "sing"),
        ],
        "evaluation": [
            ([], "required"),
            (["report"], "folder"),
            (["report", "nowhere"], "results.json"),
            (["report", "."], "results.json"),
            (["grade", "."], "grade"),
        ],
        "results": [
            (("results.json", "{"), "JSON"),
            (("results.json", "[]"), "summary"),
            (("results.json", "{}"), "summary"),
            (("results.json", {"summary": 5}), "results.json"),
            (("results.json", {"summary": {}}), "results.json"),
            (("results.json", {"episodes": 5}), "episodes"),
            (("results.json", {"episodes": [{"task": "reach-v3"}]}), "episodes"),
            (("results.json", {"seed": "first"}), "seed"),
            (("results.json", b"\xff\xfe"), "JSON"),
        ],
        "metrics": [
            ("nothing\n", "step"),
            ("time,loss\n1,2\n", "step"),
            ("step,loss\nx,2\n", "line 2"),
            ("step,loss\n1,2,3\n", "line 2"),
            ("step,loss\n1,two\n", "line 2"),
        ],
        "logger": [
            ({"kind": "tensorboard"}, "tensorboard"),
            ({"kind": "wandb", "wandb_mode": "sometimes"}, "sometimes"),
            ({"directory": "used"}, "another run"),
        ],
    }


CASES = [Case(entry, *case) for entry, cases in _cases().items() for case in cases]
