"""Examples are run through the entry of their commands, in this process where that is enough."""

import os
import subprocess
import sys
from collections import namedtuple
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Done = namedtuple("Done", "returncode stdout stderr")


@pytest.fixture(scope="session")
def run_command_of_example():
    """An example as a person runs it, in a process of its own."""

    def run(script, folder, *overrides, **environment):
        return subprocess.run(
            [sys.executable, str(EXAMPLES / script), *overrides],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def run_example():
    """The entry of an example's command, in this process: what it prints goes to files."""

    def run(script, folder, *overrides, **environment):
        spec = spec_from_file_location(script.removesuffix(".py"), EXAMPLES / script)
        module = module_from_spec(spec)
        out, err = (Path(folder) / name for name in (".stdout", ".stderr"))
        with pytest.MonkeyPatch.context() as patch, open(out, "w") as o, open(err, "w") as e:
            patch.chdir(folder)
            patch.setattr(sys, "argv", [script, *overrides])
            patch.setattr(sys, "stdout", o)
            patch.setattr(sys, "stderr", e)
            for name, value in environment.items():
                patch.setenv(name, value)
            try:
                spec.loader.exec_module(module)
                code = module.main()
            except SystemExit as stopped:
                code = stopped.code or 0
        return Done(code, out.read_text(), err.read_text())

    return run


@pytest.fixture
def check_mistake(tmp_path, run_example):
    """What must end in one clear line, with nothing made."""

    def check(script, overrides, message):
        done = run_example(script, tmp_path, "preset=smoke", "progress=false", *overrides)
        assert done.returncode == 2
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert message in lines[0]
        assert not list(tmp_path.rglob("config.json"))

    return check
