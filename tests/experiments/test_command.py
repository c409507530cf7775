"""A command under Hydra: one line for an error, an exit code, a name and an objective."""

import json
import os
import sys
from types import ModuleType

import pytest
from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback

from llmdpd_torchrl.__main__ import main
from llmdpd_torchrl.experiments.command import compose_settings, hydra_command
from llmdpd_torchrl.utils.errors import ConfigError, IncompleteError

CONFIG = """
debug: false
number: 1
name: the ${number}
changes: ''
hydra:
  output_subdir: null
  run: {dir: .}
  sweep: {dir: .}
  job: {config: {override_dirname: {kv_sep: _, item_sep: '-', exclude_keys: [size, name, debug]}}}
defaults:
  - _self_
  - size: small
  - override hydra/hydra_logging: disabled
  - override hydra/job_logging: disabled
"""

objectives = []
bugs = {
    6: ZeroDivisionError(),
    5: json.JSONDecodeError("Expecting value", "", 0),
    4.5: ValueError("one of our own"),
}


@pytest.fixture
def hydra(tmp_path, monkeypatch):
    """A command under Hydra; returns its exit code."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for size in ("small", "large"):
        (tmp_path / "size").mkdir(exist_ok=True)
        (tmp_path / "size" / f"{size}.yaml").write_text(f"width: {len(size)}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @hydra_command("config", folder=tmp_path)
    def command(cfg):
        if cfg.number > 6:
            raise ConfigError(f"number is {cfg.number}: use at most 6")
        if cfg.number in bugs:
            raise bugs[cfg.number]
        if cfg.number < 0:
            raise IncompleteError(f"number is {cfg.number}")
        objectives.append((cfg.number / 2, cfg.changes if cfg.name else None))
        return cfg.number / 2

    def call(*arguments):
        objectives.clear()
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        return command()

    return call


def test_the_exit_code_is_that_of_the_worst_run(hydra, capsys):
    assert hydra() == 0
    assert hydra("number=-4") == 1
    assert capsys.readouterr().err == "error: number is -4\n"
    assert hydra("-m", "number=2,-5,1") == 1  # a sweep goes on
    assert hydra("-m", "number=2,7,-1") == 2
    assert [objective for objective, _ in objectives] == [1.0]


def test_a_run_is_named_after_its_overrides(hydra):
    assert hydra("-m", "number=2,3", "size=large", "name=a") == 0
    assert objectives == [(1.0, "-number_2"), (1.5, "-number_3")]
    hydra("number=2", "+other=[x, y]")
    ((_, changes),) = objectives
    assert changes.startswith("-other_x_y_-number_2-")
    hydra(f"+other={'x' * 300}")
    assert len(objectives[0][1]) < 70


def test_a_sweeper_gets_the_objective(hydra, monkeypatch):
    seen = []

    class Watcher(Callback):
        def on_job_end(self, config, job_return):
            seen.append(job_return.return_value)

    module = ModuleType("watching")
    module.Watcher = Watcher
    monkeypatch.setitem(sys.modules, "watching", module)
    watcher = "+hydra.callbacks.watcher._target_=watching.Watcher"
    assert hydra("-m", "number=2,-1,4", watcher) == 1
    assert seen[0] == 1.0
    assert seen[1] is None
    assert seen[2] == 2.0


def test_the_same_configuration_in_this_process(tmp_path, hydra):
    cfg = compose_settings("config", ["number=2", "size=large"], folder=tmp_path)
    assert (cfg.number, cfg.changes) == (2, "-number_2")
    assert "hydra" not in cfg
    with pytest.raises(ConfigError, match="Could not override 'unheard'"):
        compose_settings("config", ["unheard=1"], folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("unheard=1", "Could not override 'unheard'"),
        ("size=huge", "Could not find 'size/huge'"),
        ("size=huge", "large small"),
        ("number", "missing EQUAL"),
        ("name=a=b", "special characters need quotes inside quotes: 'name=\"...\"'"),
        ("name=${unheard}", "'unheard' not found full_key: name"),
        ("number=7", "number is 7: use at most 6"),
    ],
)
def test_what_hydra_finds_wrong_is_one_line(hydra, capsys, given, said):
    assert hydra(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    for debug in ("--debug", "debug=true"):
        assert hydra(given, debug) == 2
        text = capsys.readouterr().err
        assert "Traceback" in text
        assert text.splitlines()[-1] == line
    assert hydra(given) == 2  # nothing of it stays
    assert capsys.readouterr().err.splitlines() == [line]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_all_overrides_that_hydra_refuses_are_named(hydra, capsys):
    assert hydra("unheard=1", "size=huge", "-m", "sizee=large", "number=1,2") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for said in (
        "'unheard'",
        "size/huge",
        "error: sizee: there is no such setting; size is a group",
    ):
        assert any(said in line for line in lines)


@pytest.mark.parametrize("values", ["interval(0,1)", "glob(*)", "range(1,1)", "choice(1,2)"])
def test_what_else_is_refused_is_said_of_a_sweep_of_any_kind(hydra, capsys, values):
    assert hydra("-m", "unheard=1", f"number={values}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Could not override 'unheard'" in line
    if not values.startswith(("glob", "range")):
        assert hydra("-m", "unheard=1", f"numberr={values}") == 2
        lines = capsys.readouterr().err.splitlines()
        assert ["unheard" in line or "numberr" in line for line in lines] == [True, True]


def test_settings_and_overrides_of_a_training_are_checked_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["optim.lr=1", "optim.batch_size=0", "+experiment=unheard", "text_encoder=a/b"]
    assert main(["train", *given]) == 2
    assert len(capsys.readouterr().err.splitlines()) == len(given)
    assert main(["train", "optim.lr=1"]) == 2
    assert "optim.lr: there is no such setting; optim has batch_size" in capsys.readouterr().err
    assert main(["train", "+experiment=unheard"]) == 2
    assert "d4rl_paper oracle pooled (and the variants of studies: " in capsys.readouterr().err
    assert main(["train", "text_encoder=a/b"]) == 2
    assert "another model, or a folder: text_encoder.model=NAME" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("group", "choice", "plugin"),
    [("launcher", "laptop", "joblib"), ("launcher", "slurm", "submitit_slurm"),
     ("sweeper", "tune", "optuna")],
)  # fmt: skip
def test_launchers_and_sweepers_name_their_extra(monkeypatch, group, choice, plugin):
    known = ConfigStore.instance().repo["hydra"][group]
    monkeypatch.delitem(known, f"{plugin}.yaml", raising=False)
    with pytest.raises(ConfigError, match=rf'{plugin} is not installed \(pip install "llmdpd_t'):
        compose_settings("train_metaworld", [f"hydra/{group}={choice}"])


@pytest.mark.parametrize("number", bugs)
def test_a_bug_keeps_its_traceback_under_hydra(hydra, number):
    for arguments in ([], ["-m"]):
        with pytest.raises(type(bugs[number])) as error:
            hydra(f"number={number}", *arguments)
        assert error.value is bugs[number]


def test_hydras_own_options_work(hydra, capsys):
    with pytest.raises(SystemExit) as stopped:
        hydra("--help")
    assert stopped.value.code == 0
    assert "debug: false" in capsys.readouterr().out
    assert hydra("--cfg", "job", "--debug") == 0
    assert "debug: true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "others"),
    [("train", "+experiment=oracle and d4rl_paper"), ("train-d4rl", "preset=ml45")],
)
def test_the_help_names_debug_and_what_is_of_the_other_command(capsys, command, others):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "\ndebug: false" in said
    assert "--debug shows the traceback" in said
    assert others in said.partition("Examples:")[0]
