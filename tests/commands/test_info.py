"""``llmdpd info``: what an installation consists of."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from llmdpd_torchrl import __version__
from llmdpd_torchrl.commands.info import main


def test_versions_devices_rendering_and_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))  # not made yet
    monkeypatch.setenv("MUJOCO_GL", "off")  # no probe, which takes seconds
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(["--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert set(found) == {"versions", "machine", "rendering", "folders"}
    assert found["versions"]["llmdpd_torchrl"] == __version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["CPU cores"] >= 1
    assert found["rendering"]["backend"] is None
    assert str(tmp_path / "cache") in found["folders"]["cache"]
    assert not (tmp_path / "cache").exists()
    assert "secret" not in text
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  {'torch':16}{torch.__version__}" in lines


def test_without_simulators_and_optional_packages(tmp_path):
    code = """
import sys
sys.modules.update(mujoco=None, metaworld=None, transformers=None, wandb=None)
from llmdpd_torchrl.commands.info import main
sys.exit(main(["--json"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rendering"]["backend"] is None
    assert list(Path(tmp_path).iterdir()) == []
