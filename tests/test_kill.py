"""The kill test runs: killed at random moments, training ends as if it had never stopped."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "reliability" / "kill.py"


def test_killed_runs_end_as_the_unbroken_one(tmp_path):
    file = tmp_path / "kill.json"
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--seed", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["kills"] >= 3
    assert 1 <= found["runs"] == found["runs_bit_equal_to_the_unbroken_one"]
    assert found["disk_operations_of_the_unbroken_run"] > 20
