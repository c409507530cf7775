"""Reference returns: D4RL's, built in."""

import sys
import types

import pytest

from llmdpd_torchrl.tasks import normalized_score, reference_returns
from llmdpd_torchrl.tasks.scores import import_d4rl
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "random", "expert"),
    [
        ("Hopper-v4", -20.272305, 3234.3),
        ("halfcheetah-medium-replay-v2", -280.178953, 12135.0),
        ("walker2d_medium", 1.629008, 4592.3),
    ],
)
def test_the_scale_runs_from_random_to_expert(name, random, expert):
    assert normalized_score(name, random) == 0.0
    assert normalized_score(name, expert) == 100.0
    assert normalized_score(name, (random + expert) / 2) == pytest.approx(50.0)


def test_a_package_that_can_not_be_imported_is_a_warning(monkeypatch, tmp_path):
    """d4rl raises a bare Exception where MuJoCo 2.1 is missing."""
    (tmp_path / "d4rl.py").write_text("raise Exception('You appear to be missing MuJoCo\\nline 2')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    with pytest.warns(UserWarning, match="not usable .Exception: You appear to be missing MuJoCo."):
        assert import_d4rl() is None
    with (
        pytest.warns(UserWarning, match="not usable"),
        pytest.raises(ConfigError, match="no reference returns for 'pen-human-v0'"),
    ):
        reference_returns("pen-human-v0")


def test_the_package_knows_rarer_datasets(monkeypatch):
    infos = types.ModuleType("d4rl.infos")
    infos.REF_MIN_SCORE = {"pen-human-v0": 96.262799}
    infos.REF_MAX_SCORE = {"pen-human-v0": 3076.8331}
    package = types.ModuleType("d4rl")
    package.infos = infos
    monkeypatch.setitem(sys.modules, "d4rl", package)
    monkeypatch.setitem(sys.modules, "d4rl.infos", infos)
    assert reference_returns("pen-human-v0") == (96.262799, 3076.8331)
