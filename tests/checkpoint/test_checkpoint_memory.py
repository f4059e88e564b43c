"""Peak memory: a shard far larger than the bound passes through, copied or rewritten."""

import json
import subprocess
import sys

import pytest
from checkpoint_builders import write_config

MIB = 2**20
SCRIPT = """
import sys
from pathlib import Path
from gqakit.checkpoint import Checkpoint, Replacement, WriteJob, write_checkpoint
def peak_kib():
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
source = Checkpoint.open(sys.argv[1])
replaced = {}
if sys.argv[3] == "rewritten":
    import torch
    replaced["t0"] = Replacement((1024, 1024), "F32", lambda: torch.ones(1024, 1024).t())
before = peak_kib()
write_checkpoint(source, Path(sys.argv[2]), WriteJob(replaced, source.config, {}))
if sys.argv[3] == "rewritten":
    source.load("t1")
print(peak_kib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["copied", "rewritten"])
def test_peak_memory_of_a_300_mib_shard(tmp_path, how):
    write_config(tmp_path / "in")
    size = 30 * MIB
    header = {
        f"t{i}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(10)
    }
    text = json.dumps(header).encode()
    with (tmp_path / "in" / "model.safetensors").open("wb") as file:  # sparse: takes no time to make
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 10 * size)
    command = [sys.executable, "-c", SCRIPT, tmp_path / "in", tmp_path / "out", how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "out" / "model.safetensors").unlink()  # pytest keeps the directories of three runs
    assert int(done.stdout) / 1024 < 100
