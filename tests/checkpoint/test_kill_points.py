"""`kill -9` at a few points; benchmarks/kill_points.py tries more of them and explains how."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_points.py"


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_the_same_command_gives_the_bytes_of_a_quiet_run():
    chosen = [
        arg
        for name in ("convert", "repair", "export to GGUF", "export to uniform")
        for arg in ("--command", name)
    ]
    command = [sys.executable, str(SCRIPT), "--points", "6", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("0 failures") == 4
    assert "0 killed" not in done.stdout
