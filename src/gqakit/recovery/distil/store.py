"""The work directory of a run: what it was asked, its checkpoints, its metrics.

run.json           what decides the result; a run with another one is not continued
metrics.jsonl      one line per step and one per evaluation
checkpoint-120/    after step 120, as the Trainer writes it: weights that train, optimiser, schedule, random numbers;
                   `whole`, written last, says that nothing is missing
slower.json        how many times it began again with a smaller learning rate
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gqakit.checkpoint import write_bytes
from gqakit.checkpoint.atomic import output_errors, sync_directory
from gqakit.checkpoint.jsonio import canonical, pretty
from gqakit.errors import OutputError
from gqakit.recovery.distil.options import StepSchedule

RUN_FILE, METRICS_FILE, WEIGHTS_FILE = "run.json", "metrics.jsonl", "model.safetensors"
STATE_FILE, WHOLE_FILE, SLOWER_FILE = "trainer_state.json", "whole", "slower.json"
RUN_FILES = (RUN_FILE, METRICS_FILE, SLOWER_FILE, "checkpoint-[0-9]*")
"""Patterns of what a run writes into its directory, folders and all."""
FAR = 1.5
"""Times the start's loss after the first steps, above which a run is not expected to come back."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: finished optimiser steps. tokens: items of the examples that they took.
        best: lowest held-out loss, at step `best_step`; None before the first evaluation.
        seconds: spent in training steps, over all attempts.
        first, best_scores, last: what the evaluation at the start, the best and the latest one said.
        stopped: whether the run ended early.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    first: dict[str, float] | None = None
    best_scores: dict[str, float] | None = None
    last: dict[str, float] | None = None
    stopped: bool = False

    @classmethod
    def of(cls, state: Any, patience: int) -> Progress:
        """What a `TrainerState` amounts to.

        Args:
            state: of transformers. patience: evaluations without a new best after which a run ends; 0 for never.
        """
        lines: list[dict[str, float]] = state.log_history
        scores = {
            int(line["step"]): {k.removeprefix("eval_"): v for k, v in line.items() if k.startswith("eval_")}
            for line in lines
            if "eval_loss" in line
        }
        best_step = state.best_global_step or 0
        since_best = sum(step > best_step for step in scores)
        return cls(
            step=state.global_step,
            tokens=state.num_input_tokens_seen,
            best=state.best_metric,
            best_step=best_step,
            seconds=sum(line.get("seconds", 0.0) for line in lines),
            first=scores.get(0),
            best_scores=scores.get(best_step),
            last=scores[max(scores)] if scores else None,
            stopped=0 < patience <= since_best,
        )

    def harmed(self, schedule: StepSchedule) -> bool:
        """Whether the learning rate was too large: far from the start at once, or never better than it until the end.

        Somewhat worse at once says nothing: a rate at its height stirs up what has settled, and calms down as it falls.
        """
        if self.step >= schedule.max_steps or self.stopped:
            return self.best_step == 0
        if self.step != schedule.eval_steps or not (self.first and self.last):
            return False
        return self.last["loss"] > FAR * self.first["loss"]


class RunStore:
    """The work directory.

    Args:
        directory: where it is. patience: see `Progress.of`.
    """

    def __init__(self, directory: Path, patience: int = 0) -> None:
        self.directory, self.patience = directory, patience

    def attempt(self) -> int:
        """How many times the run began again with a smaller learning rate."""
        path = self.directory / SLOWER_FILE
        return _read_json(path)["attempt"] if path.is_file() else 0

    def begin_again(self, attempt: int) -> None:
        """Drop what was trained, for an attempt of that number with a smaller learning rate."""
        self._remove(set())  # first: a run that is killed here repeats an attempt, and leaves none out
        write_bytes(self.directory / SLOWER_FILE, pretty({"attempt": attempt}))

    def begin(self, job: Mapping[str, Any], restart: bool) -> Progress:
        """Start or continue: how far the run is.

        Raises:
            OutputError: the directory holds a run that was asked something else, or one that cannot be read.
        """
        asked: dict[str, Any] = json.loads(canonical(dict(job)))
        path = self.directory / RUN_FILE
        with output_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        if not restart and path.is_file() and (self.latest() is not None or self.attempt()):
            self._check_same(path, asked)
            self._remove(set(self._checkpoints()))
            return self.progress()
        self.clear()
        write_bytes(path, pretty(asked))
        return Progress()

    def _check_same(self, path: Path, job: dict[str, Any]) -> None:
        before = _read_json(path)
        different = [
            f"{key} was {before.get(key)!r}, is now {job.get(key)!r}"
            for key in sorted(before.keys() | job.keys())
            if before.get(key) != job.get(key)
        ]
        if different:
            raise OutputError(
                f"{self.directory}: holds an interrupted run of another kind ({'; '.join(different)}). Give the same "
                "options to continue it, use `restart=True` to train from the beginning, or choose another output."
            )

    def clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        self._remove(set())
        with output_errors(self.directory):
            for name in (RUN_FILE, METRICS_FILE, SLOWER_FILE):
                (self.directory / name).unlink(missing_ok=True)

    def latest(self) -> Path | None:
        """The last whole checkpoint."""
        found = self._checkpoints()
        return found[-1] if found else None

    def progress(self) -> Progress:
        """How far the run is that lies here.

        Raises:
            OutputError: its state cannot be read.
        """
        latest = self.latest()
        if latest is None:
            return Progress()
        from transformers import TrainerState

        content = _read_json(latest / STATE_FILE)
        try:
            return Progress.of(TrainerState(**content), self.patience)
        except (TypeError, KeyError, AttributeError) as error:
            raise _unreadable(latest / STATE_FILE, error) from error

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights that train, after a step, by their names in the model.

        Raises:
            OutputError: they cannot be read.
        """
        path = self.directory / f"checkpoint-{step}" / WEIGHTS_FILE
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Around writing a checkpoint: what a full disk leaves of it goes.

        Raises:
            OutputError: it cannot be written; names the last whole one.
        """
        folder = self.directory / f"checkpoint-{step}"
        try:
            with output_errors(folder):
                yield
        except (OutputError, SafetensorError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError of its zip writer, safetensors as its own error
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(f"{error} Training stopped; {self.last_good()}.") from error

    def finish(self, step: int, best_step: int) -> None:
        """Mark the checkpoint of a step as whole, once its files are on the disk; then drop all but it and the best."""
        folder = self.directory / f"checkpoint-{step}"
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        write_bytes(folder / WHOLE_FILE, b"")
        sync_directory(self.directory)
        self._remove({folder, self.directory / f"checkpoint-{best_step}"})

    def rewrite_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Set the metrics back to what a checkpoint knows; the steps after it come again."""
        write_bytes(
            self.directory / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in lines).encode()
        )

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the metrics."""
        path = self.directory / METRICS_FILE
        with output_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> bytes:
        """All lines."""
        path = self.directory / METRICS_FILE
        return path.read_bytes() if path.is_file() else b""

    def last_good(self) -> str:
        """Where the latest whole state lies, for messages."""
        latest = self.latest()
        return f"the last good state is kept in {latest}" if latest else "no state was saved before it"

    def _checkpoints(self, whole: bool = True) -> list[Path]:
        named = [path for path in self.directory.glob("checkpoint-*") if path.name[11:].isdigit()]
        return sorted(
            (path for path in named if not whole or (path / WHOLE_FILE).is_file()),
            key=lambda path: int(path.name[11:]),
        )

    def _remove(self, kept: set[Path]) -> None:
        with output_errors(self.directory):
            for path in self._checkpoints(whole=False):
                if path not in kept:
                    (path / WHOLE_FILE).unlink(
                        missing_ok=True
                    )  # first: what is half gone must not look whole
                    shutil.rmtree(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot be read ({error}); use `restart=True` to train from the beginning")
