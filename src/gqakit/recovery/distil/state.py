"""The work directory of a run: what it was asked, how far it is, the best so far, its metrics.

    run.json               what decides the result; a run with another one is not continued
    metrics.jsonl          a line a step and a line an evaluation
    state-00000120/        after step 120: weights, optimiser, counts
    best-00000100/         the weights with the lowest held-out loss

A directory gets its name when everything in it is written; older ones go after that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gqakit.checkpoint import write_bytes
from gqakit.checkpoint.atomic import output_errors, sync_directory
from gqakit.checkpoint.jsonio import canonical, pretty
from gqakit.errors import OutputError
from gqakit.recovery.distil.tensorfile import load_tensors, save_tensors

RUN_FILE, METRICS_FILE, STATE_FILE = "run.json", "metrics.jsonl", "state.json"
WEIGHTS_FILE, OPTIMISER_FILE = "weights.safetensors", "optimiser.safetensors"
STORE_FILES = (RUN_FILE, METRICS_FILE, "state-????????*", "best-????????*")
"""What a run writes into its directory."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: finished optimiser steps. tokens: examples' items seen by them.
        best: lowest held-out loss, at step `best_step`; None before the first evaluation.
        worse: evaluations since. seconds: spent in training, over all attempts.
        first, last: what the evaluation at the start and the latest one said.
        stopped: whether the run ended early.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0
    first: dict[str, float] | None = None
    best_scores: dict[str, float] | None = None
    last: dict[str, float] | None = None
    stopped: bool = False

    def evaluated(self, scores: dict[str, float]) -> Progress:
        """After an evaluation; `scores["loss"]` decides which is best."""
        better = self.best is None or scores["loss"] < self.best
        after = replace(self, last=scores, first=self.first or scores, worse=0 if better else self.worse + 1)
        return (
            replace(after, best=scores["loss"], best_step=self.step, best_scores=scores) if better else after
        )


class Store:
    """The work directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, job: Mapping[str, Any], restart: bool) -> Progress:
        """Start or continue: how far the run is.

        Raises:
            OutputError: the directory holds a run that was asked something else, or is none of ours.
        """
        asked: dict[str, Any] = json.loads(canonical(dict(job)))
        path = self.directory / RUN_FILE
        if restart:
            self.clear()
        if path.is_file() and (progress := self.found()) is not None:
            self._check_same(path, asked)
            self._forget_after(progress.step)
            return progress
        self.clear()
        write_bytes(path, pretty(asked))
        return Progress()

    def found(self) -> Progress | None:
        """How far the run is that lies here; None where none was saved."""
        states = self._named("state")
        if not states:
            return None
        path = states[-1] / STATE_FILE
        try:
            return Progress(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(
                f"{path}: cannot be read ({error}); use --restart to train from the beginning"
            ) from error

    def _check_same(self, path: Path, job: dict[str, Any]) -> None:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path}: cannot be read ({error}); use --restart to train from the beginning"
            ) from error
        different = [
            f"{key} was {before.get(key)!r}, is now {job.get(key)!r}"
            for key in sorted(before.keys() | job.keys())
            if before.get(key) != job.get(key)
        ]
        if different:
            raise OutputError(
                f"{self.directory}: holds an interrupted run of another kind ({'; '.join(different)}). Give the same "
                "options to continue it, use --restart to train from the beginning, or choose another output."
            )

    def clear(self) -> None:
        """Remove what this class writes, and nothing else."""
        with output_errors(self.directory):
            for path in [*self._named("state"), *self._named("best"), *self.directory.glob("*partial")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in (RUN_FILE, METRICS_FILE):
                (self.directory / name).unlink(missing_ok=True)

    def save_state(
        self, progress: Progress, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]
    ) -> None:
        """Write what a resumed run needs, then drop what it does not."""
        files = {WEIGHTS_FILE: weights, OPTIMISER_FILE: optimiser}
        self._save(f"state-{progress.step:08d}", files, pretty(asdict(progress)))
        keep = {f"state-{progress.step:08d}", f"best-{progress.best_step:08d}"}
        for path in [*self._named("state"), *self._named("best")]:
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write the best weights so far; the former go once a state refers to these."""
        self._save(f"best-{step:08d}", {WEIGHTS_FILE: weights}, None)

    def load_state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and optimiser after a step."""
        folder = self.directory / f"state-{step:08d}"
        return load_tensors(folder / WEIGHTS_FILE), load_tensors(folder / OPTIMISER_FILE)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The best weights."""
        return load_tensors(self.directory / f"best-{step:08d}" / WEIGHTS_FILE)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to the metrics."""
        path = self.directory / METRICS_FILE
        with output_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> bytes:
        """All lines."""
        path = self.directory / METRICS_FILE
        return path.read_bytes() if path.is_file() else b""

    def last_good(self) -> str:
        """Where the latest whole state lies, for messages."""
        states = self._named("state")
        return f"the last good state is kept in {states[-1]}" if states else "no state was saved before it"

    def _save(self, name: str, files: Mapping[str, Mapping[str, Tensor]], record: bytes | None) -> None:
        target, partial = self.directory / name, self.directory / f"{name}.partial"
        try:
            with output_errors(partial):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
            for file, tensors in files.items():
                save_tensors(partial / file, tensors)
            if record is not None:
                write_bytes(partial / STATE_FILE, record)
            with output_errors(target):
                shutil.rmtree(target, ignore_errors=True)  # of an attempt that got this far before
                os.replace(partial, target)
        except OutputError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OutputError(f"{error} Training stopped; {self.last_good()}.") from error
        sync_directory(self.directory)

    def _named(self, kind: str) -> list[Path]:
        return sorted(path for path in self.directory.glob(f"{kind}-????????") if path.is_dir())

    def _forget_after(self, step: int) -> None:
        """Take out of the metrics what comes after a step; it will be done again."""
        path = self.directory / METRICS_FILE
        lines = self.metrics().decode().splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off while it was written
