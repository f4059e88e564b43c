"""Damaged and hostile input files: each gives one clear line or a right result, and nothing outside the output.

    python benchmarks/fuzz.py --count 10000

Every input is made from a golden file (tests/golden) by its number alone, so `--first N --count 1` makes one
again. A failure is anything but a result or a `GqakitError` of one line: another exception, more than ten
seconds, a file that appears outside of the output.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, WriteJob, write_checkpoint
from gqakit.conversion.convert import Writing, convert_checkpoint
from gqakit.errors import CheckpointError, GqakitError
from gqakit.models.inspection import inspect
from gqakit.models.remote_code.heads import read_layers
from gqakit.models.source import Source
from gqakit.planning.layer_loss.file import LossFile, LossHeader, measured_on
from gqakit.planning.plan import Plan, diff_plans

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SECONDS = 10
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
Rng = random.Random

# --- what a file is turned into

STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", " ", "x", "../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "a\0b"),
    *("\ud800", "\u202e", "x" * 5000, "F32", "BF16", "model.safetensors", "../../outside/x.safetensors"),
    *([], {}, [[]], [None], [-1], [2**40, 2**40], {"": {}}, [0] * 1000, "layers.0", "float32", "llama"),
)


def strange(rng: Rng) -> Any:
    if rng.random() < 0.05:
        value: Any = 1
        for _ in range(rng.choice([5, 200])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(STRANGE)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def change_json(rng: Rng, document: Any) -> Any:
    """A JSON value with one to three things changed, removed, added or exchanged."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(document))
        if not found or rng.random() < 0.02:
            return copy.deepcopy(strange(rng))
        holder, key = rng.choice(found)
        how = rng.randrange(6)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[rng.choice([*map(str, STRANGE), f"{key}x"])] = copy.deepcopy(
                rng.choice([holder[key], strange(rng)])
            )
        elif how == 2 and isinstance(holder, dict):
            other = rng.choice(list(holder))
            holder[key], holder[other] = holder[other], holder[key]
        elif how == 3 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice([-1, 1, 7, -holder[key], holder[key], 2**40])
        elif how == 4 and isinstance(holder, list):
            holder.extend(holder[: rng.randint(1, 3)])
        else:
            holder[key] = copy.deepcopy(strange(rng))  # STRANGE itself is left as it is
    return document


def change_bytes(rng: Rng, data: bytes) -> bytes:
    """Bytes changed, cut, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(5)
        if how == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif how == 1:
            del changed[at : at + rng.choice([1, 8, 1000])]
        elif how == 2:
            changed[at:at] = rng.randbytes(rng.choice([1, 8, 1000]))
        elif how == 3:
            changed[at:at] = changed[max(0, at - rng.choice([1, 50])) : at]
        else:
            changed = changed[:at]
    return bytes(changed)


def change_text(rng: Rng, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    return json.dumps(change_json(rng, json.loads(data)), indent=rng.choice([None, 2])).encode()


def change_lines(rng: Rng, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(change_json(rng, json.loads(lines[at]))).encode()
    if rng.random() < 0.3:
        rng.shuffle(lines)
    return b"\n".join(lines) + rng.choice([b"\n", b""])


def change_safetensors(rng: Rng, data: bytes) -> bytes:
    """A header with other values, or a length that is not its own; rarely other bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, data[:200]) + data[200:]
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    if rng.random() < 0.85:
        header = json.dumps(change_json(rng, json.loads(header))).encode()
    said = len(header) if rng.random() < 0.9 else rng.choice([0, 1, length - 1, 2**31, 2**63, 2**64 - 1])
    return said.to_bytes(8, "little") + header + data[8 + length :]


def replace_file(rng: Rng, path: Path) -> None:
    """In place of a file something that is none, or one that lies elsewhere."""
    content = path.read_bytes()
    path.unlink()
    outside = path.parent.parent / "outside"
    how = rng.randrange(7)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to(rng.choice(["/dev/zero", "/proc/self/mem", "/dev/null"]))
    elif how == 3:
        path.symlink_to(path.name)
    elif how == 4:
        path.symlink_to(outside / "secret")
    elif how == 5:
        path.symlink_to(outside)
    else:
        path.write_bytes(
            rng.choice([b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\n", content])
        )


# --- what is done with it


def read_model(folder: Path) -> None:
    """All that reads a model, and a copy of it."""
    checkpoint = Checkpoint.open(folder / "case")
    checkpoint.fingerprint()
    for name in list(checkpoint.tensors)[:3]:
        checkpoint.load(name)
    write_checkpoint(checkpoint, folder / "out", WriteJob({}, checkpoint.config, {}))
    assert Checkpoint.open(folder / "out").fingerprint() == checkpoint.fingerprint()


def describe(folder: Path) -> None:
    inspect(folder / "case")
    opened = Source.open(folder / "case")
    checkpoint, spec = opened.checkpoint, opened.spec
    if spec.is_grouped:
        try:
            read_layers(checkpoint.config["gqakit"], spec.num_layers, spec.num_heads)
        except ValueError as error:  # what the code that is shipped raises; gqakit's callers do this
            raise CheckpointError(str(error)) from error


def carry_out(folder: Path) -> None:
    """A plan: read, written again, and carried out."""
    plan = Plan.load(folder / "case" / "plan.json")
    plan.save(folder / "out")
    assert Plan.load(folder / "out") == plan
    (folder / "out").unlink()
    list(diff_plans(plan, Plan.load(GOLDEN / "plan.json")))
    source = Source.open(GOLDEN / "model", plan.source.stacks)
    statistics = StatisticsFile.open(GOLDEN / "statistics.safetensors")
    convert_checkpoint(source, plan, statistics, folder / "out", "card")


def read_statistics(folder: Path) -> None:
    found = StatisticsFile.open(folder / "case" / "statistics.safetensors")
    assert found.fingerprint
    spec = Source.open(GOLDEN / "model").spec
    for layer in range(spec.num_layers):
        found.layer(spec.key(layer))


def read_losses(folder: Path) -> None:
    path = folder / "case" / "losses.jsonl"
    measured_on(path)
    header = LossHeader.model_validate_json((GOLDEN / "losses.jsonl").read_text().splitlines()[0])
    LossFile.open(header, path).add((0, "both", (0, 0, 0, 1)), 0.5)


def go_on(folder: Path) -> None:
    """Continue, or overwrite, an unfinished output with a damaged manifest."""
    out, plan = folder / "case", Plan.load(GOLDEN / "plan.json")
    source = Source.open(GOLDEN / "model", plan.source.stacks)
    statistics = StatisticsFile.open(GOLDEN / "statistics.safetensors")
    try:
        convert_checkpoint(source, plan, statistics, out, "card")
    except GqakitError:
        convert_checkpoint(source, plan, statistics, out, "card", Writing(overwrite=True))


@dataclass(frozen=True)
class Target:
    """A file of a golden directory (or a golden file), how it is damaged, and what then reads it."""

    golden: str
    file: str
    change: Callable[[Rng, bytes], bytes]
    read: Callable[[Path], None]
    weight: int = 1


TARGETS = {
    "header": Target("model", SHARD, change_safetensors, read_model, 3),
    "index": Target("model", INDEX, change_text, read_model, 3),
    "config": Target("model", "config.json", change_text, describe, 3),
    "tokenizer config": Target("model", "tokenizer_config.json", change_text, read_model),
    "grouped config": Target("grouped", "config.json", change_text, describe, 3),
    "plan": Target("plan.json", "plan.json", change_text, carry_out, 2),
    "statistics": Target(
        "statistics.safetensors", "statistics.safetensors", change_safetensors, read_statistics, 2
    ),
    "losses": Target("losses.jsonl", "losses.jsonl", change_lines, read_losses, 2),
    "manifest": Target("unfinished", MANIFEST_NAME, change_text, go_on, 2),
}


class HangError(Exception):
    """It took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise HangError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare(number: int, folder: Path) -> tuple[str, Target]:
    """Lay out input `number` in an empty folder: the damaged files in `case`, and `outside` to be left alone."""
    rng = Rng(number)
    name = rng.choices(list(TARGETS), [target.weight for target in TARGETS.values()])[0]
    target, case = TARGETS[name], folder / "case"
    golden = GOLDEN / target.golden
    if golden.is_dir():
        shutil.copytree(golden, case)
    else:
        case.mkdir()
        shutil.copy(golden, case / target.file)
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_text("mine")
    shutil.copy(GOLDEN / "model" / SHARD, folder / "outside" / "x.safetensors")
    path = case / target.file
    if rng.random() < 0.1:
        replace_file(rng, path)
    else:
        path.write_bytes(target.change(rng, path.read_bytes()))
    return name, target


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (folder / "outside").iterdir()} | {
        p.name: b"" for p in folder.iterdir()
    }


def attempt(number: int, folder: Path) -> tuple[str, str, str]:
    """Make an input and read it: its kind, what came of it (`read`, `refused` or `FAILED`), and the words."""
    folder.mkdir()
    name, target = prepare(number, folder)
    before = snapshot(folder)
    case = {path.name for path in (folder / "case").iterdir()}
    outcome, words = "read", ""
    try:
        with time_limit(SECONDS):
            target.read(folder)
    except GqakitError as error:
        outcome, words = "refused", str(error)
        if "\n" in words or not words.strip():
            outcome, words = "FAILED", f"not one line: {words!r}"
    except (Exception, RecursionError, MemoryError):  # noqa: BLE001  # whatever else comes out is what is looked for
        outcome, words = "FAILED", traceback.format_exc()
    after = snapshot(folder)
    after.pop("out", None)
    if after != before:
        outcome, words = (
            "FAILED",
            f"outside of the output: {sorted(after.keys() ^ before.keys()) or 'changed'}\n{words}",
        )
    if target.read is read_model and case != {path.name for path in (folder / "case").iterdir()}:
        outcome, words = "FAILED", f"the source was written to\n{words}"
    shutil.rmtree(folder)
    return name, outcome, words


def fuzz(
    first: int, count: int, folder: Path, seconds: float = float("inf")
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Try inputs `first` and on; returns how many of each kind came out how, and the failures."""
    results: Counter[tuple[str, str]] = Counter()
    failures, began = [], time.monotonic()
    for number in range(first, first + count):
        if time.monotonic() - began > seconds:
            break
        name, outcome, words = attempt(number, folder / "input")
        results[name, outcome] += 1
        if outcome == "FAILED":
            failures.append(f"input {number} ({name}): {words}")
    return results, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    # What is claimed to be huge must not be made: a MemoryError then says so, and the machine lives on.
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        began = time.monotonic()
        results, failures = fuzz(asked.first, asked.count, Path(folder))
    for failure in failures:
        print(failure, file=sys.stderr)
    for name in TARGETS:
        row = ", ".join(f"{results[name, outcome]} {outcome}" for outcome in ("read", "refused", "FAILED"))
        print(f"{name:18} {row}")
    print(f"{sum(results.values())} inputs in {time.monotonic() - began:.0f} s, {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
