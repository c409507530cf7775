"""The method put together by hand: it trains, and it acts on a task that it was not trained on."""

import importlib.util
import math
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "examples" / "llmdpd_by_hand.py"


def test_it_learns_and_acts_on_another_task(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("llmdpd_by_hand", SCRIPT)
    llmdpd_by_hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(llmdpd_by_hand)
    total = llmdpd_by_hand.main(tmp_path)
    assert math.isfinite(total)
    assert total > 0  # Meta-World pays at every step
    printed = capsys.readouterr().out
    cloning = [float(value) for value in re.findall(r"L_d ([\d.]+)", printed)]
    assert len(cloning) == llmdpd_by_hand.UPDATES // 50
    assert cloning[-1] < cloning[0] / 2
    assert f"{llmdpd_by_hand.UNSEEN}, never trained on" in printed
    assert llmdpd_by_hand.UNSEEN not in llmdpd_by_hand.TRAINED
