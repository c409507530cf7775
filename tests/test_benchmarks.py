"""The committed figures are those of the committed raw files."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def test_every_result_names_its_command_and_raw_file():
    files = [path for path in RESULTS.glob("*.json") if not path.stem.endswith("_raw")]
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert {"command", "commit", "machine", "when", "figures", "raw"} <= set(result)
        assert (RESULTS / result["raw"]).exists()


def test_quick_figures_follow_from_the_kept_results():
    command = [sys.executable, "benchmarks/quick.py", "--check"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
