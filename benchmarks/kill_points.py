"""`kill -9` at random points of convert, repair and export: the same command then gives the bytes of a quiet run.

    python benchmarks/kill_points.py --points 50

Half of the points are just before a change of the file system (a file opened for writing, renamed or removed, a
directory made or removed), counted by an audit hook, and half are moments in time. After each kill nothing that
is half written may load. Runs are forked from this process, which has everything imported already.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama
import transformers.models.llama.tokenization_llama  # noqa: F401  # once, not in each forked run

from gqakit.checkpoint import Checkpoint
from gqakit.errors import GqakitError, OutputError
from gqakit.exporters.export import export
from gqakit.pipeline import convert
from gqakit.recovery.repair.repair import repair

MODEL = Path(__file__).parents[1] / "tests" / "golden" / "model"
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
KILLED, REFUSED = 137, 7
Command = Callable[[bool], Any]

SIZES = {"tokens": 256, "window": 32, "evaluate": False, "progress": False}


def _convert(overwrite: bool, **how: Any) -> None:
    convert(
        MODEL, "out", kv_ratio=0.6, format="grouped", measure_tokens=256, overwrite=overwrite, **SIZES, **how
    )


def _export(to: str, overwrite: bool) -> None:
    export("../conversion", "out", to=to, overwrite=overwrite, progress=False)


COMMANDS: dict[str, Command] = {
    "convert": _convert,
    "repair": lambda overwrite: repair(
        "../conversion", "out", source=str(MODEL), steps=4, overwrite=overwrite, **SIZES
    ),
    "convert and repair": lambda overwrite: _convert(
        overwrite, repair=True, repair_tokens=256, repair_steps=4
    ),
    "export to GGUF": lambda overwrite: _export("gguf", overwrite),
    "export to uniform": lambda overwrite: _export("uniform", overwrite),
    "export to ONNX": lambda overwrite: _export("onnx", overwrite),
}


SLOW = {"export to ONNX"}  # it traces the model for seconds in each run; only where it is asked for


def changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change the working directory's file system."""
    if event == "open":
        return isinstance(arguments[0], str | bytes | Path) and bool(
            arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
    return event in CHANGES


def forked(
    folder: Path, command: Command, *, overwrite: bool = False, at: int = 0, after: float = 0
) -> tuple[int, int]:
    """Run a command in a process of its own, in `folder`.

    Args:
        at: kill it just before this change of the file system, counted from 1; 0 for not.
        after: kill it after this many seconds; 0 for not.

    Returns its exit code and the number of changes.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if changes(event, arguments):
                count += 1
                if count == at:
                    os._exit(KILLED)

        code, said = 1, os.dup(2)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # transformers' bars and remarks
            os.chdir(folder)
            sys.addaudithook(watch)
            command(overwrite)
            code = 0
        except OutputError as error:
            code = REFUSED
            if overwrite:
                os.write(said, f"{error}\n".encode())
        except BaseException:  # noqa: BLE001  # of a forked process nothing may get out
            os.write(said, traceback.format_exc().encode())
        finally:
            os.write(write, str(count).encode())
            os._exit(code)
    os.close(write)
    if after:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(read, "rb") as pipe:
        count = int(pipe.read() or 0)
    return KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), count


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for the lock that a killed run leaves."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith("gqakit-lock")}


def check_nothing_half_written(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever loads is as the quiet run left it; raises AssertionError else."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".gguf", ".safetensors", "") and not path.name.startswith("."):
            assert path.read_bytes() == whole.get(path.name), f"{path.name} is half written"
    out = folder / "out"
    if not out.is_dir():
        return
    expected = {name.removeprefix("out/"): data for name, data in whole.items() if name.startswith("out/")}
    if (out / "model.onnx").exists():  # the mark of a work directory may still be there; it hides nothing
        assert expected.items() <= files(out).items(), "a half export"
    try:
        Checkpoint.open(out)
    except GqakitError:
        return
    assert files(out) == expected, "a half checkpoint loads"


def kill_and_repeat(
    folder: Path, command: Command, whole: dict[str, bytes], *, at: int = 0, after: float = 0
) -> str:
    """Kill one run, look at what it left, and run it again; returns what happened, raises AssertionError if it is wrong."""
    folder.mkdir()
    code, _ = forked(folder, command, at=at, after=after)
    assert code in (0, KILLED), f"exit code {code}"
    check_nothing_half_written(folder, whole)
    again, _ = forked(folder, command)
    if again == REFUSED:  # it was finished, so it is another run
        assert (folder / "out").exists(), "refused, and no output is there"
        again, _ = forked(folder, command, overwrite=True)
    assert again == 0, f"the second run ends with {again}"
    assert files(folder) == whole, f"other files: {_different(files(folder), whole)}"
    shutil.rmtree(folder)
    return "finished" if code == 0 else "killed"


def _different(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def try_points(name: str, points: int, rng: random.Random, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Kill a command at some points; returns how many runs were killed and finished, and the failures."""
    command, failures, counts = COMMANDS[name], [], {"killed": 0, "finished": 0}
    (folder / "whole").mkdir()
    began = time.monotonic()
    code, changes = forked(folder / "whole", command)
    took = time.monotonic() - began
    if code:
        return counts, [f"{name}: undisturbed it ends with {code}"]
    whole = files(folder / "whole")
    ordered = rng.sample(range(1, changes + 1), min(points - points // 2, changes))
    kills: list[dict[str, Any]] = [{"at": at} for at in ordered] + [
        {"after": rng.uniform(0, took)} for _ in range(points // 2)
    ]
    for kill in kills:
        try:
            counts[kill_and_repeat(folder / "run", command, whole, **kill)] += 1
        except AssertionError as error:
            failures.append(f"{name}, killed {kill} of {changes} changes, {took:.2f} s: {error}")
            shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "whole")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="only this; may be repeated")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    failed = False
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        code, _ = forked(folder, COMMANDS["convert"])
        if code:
            return code
        os.rename(folder / "out", folder / "conversion")
        for name in asked.command or [name for name in COMMANDS if name not in SLOW]:
            began = time.monotonic()
            counts, failures = try_points(name, asked.points, random.Random(asked.seed), folder)
            failed |= bool(failures)
            print(
                f"{name:20} {counts['killed']} killed and repeated, {counts['finished']} had finished, "
                f"{len(failures)} failures, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for failure in failures:
                print(f"  {failure}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
