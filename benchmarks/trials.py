"""Experiments on conversions that are trained after it: every cell is one way, size and seed, and is kept when finished.

A subject (SmolLM2, MiniLM, Whisper) says what is converted, what is trained and what is scored; an experiment says which
ways at which sizes. Cells run seed by seed, so that a table of what is done so far compares all ways alike.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from common import plan_within
from gqakit.calibration.store import StatisticsFile
from gqakit.conversion.convert import convert_checkpoint
from gqakit.models.source import Source
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Measure
from gqakit.recovery.distil.options import StepSchedule, UptrainOptions
from gqakit.recovery.distil.store import RunStore
from gqakit.recovery.distil.task import Task
from gqakit.recovery.distil.trainer import Training
from gqakit.recovery.distil.trainer import train as train_to_the_end

Scores = Mapping[str, float]
Ways = Mapping[str, Mapping[str, Any]]
"""Options of a plan by the name that a table gives them; `rate` beside them multiplies the rate of training."""
SOURCE, WHOLE = "source", "1"
"""A conversion that changes nothing, trained as the others are: its way and its size."""
_UNCHANGED = {"method": "neighbour", "merge": "mean", "allocation": "uniform"}
_BY_CHANCE = ("asymgqa", "qcqa")
REACHED = 0.95
"""A plan that keeps less than this share of the bytes asked for is of another size: the way has none of this one."""


class Subject(Protocol):
    """A model with what it is converted, trained and scored on."""

    name: str
    score: str
    """Which of the scores counts."""
    higher: bool
    """Whether more of it is better."""
    options: UptrainOptions
    """How it is trained; `epochs` and `seed` are the experiment's."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a table should say."""
        ...

    @property
    def source(self) -> Path:
        """The checkpoint to convert."""
        ...

    def statistics(self) -> StatisticsFile | None:
        """Its calibration; None where weights alone decide."""
        ...

    def measure(self, merge: str) -> Measure:
        """Measures what a layer's candidates lose."""
        ...

    def student(self, path: Path) -> nn.Module:
        """A converted checkpoint, loaded, with what trains marked."""
        ...

    def teacher(self) -> nn.Module | None:
        """What it learns from, beside its task."""
        ...

    def task(self, seed: int) -> Task:
        """Trains as the seed says, and is scored on the same for all seeds."""
        ...


@dataclass(frozen=True)
class Trial:
    """What is asked for: a way with its options, a size, a seed."""

    way: str
    options: Mapping[str, Any]
    size: str
    seed: int

    @property
    def rate(self) -> float:
        """The rate of training, in the subject's."""
        return float(self.options.get("rate", 1.0))

    @property
    def plan_options(self) -> PlanOptions:
        """Without chance in the method it is the same for all seeds."""
        seed = self.seed if self.options["method"] in _BY_CHANCE else 0
        return PlanOptions(**{name: v for name, v in self.options.items() if name != "rate"}, seed=seed)


@dataclass(frozen=True)
class Cell:
    """One way at one size with one seed.

    Attributes:
        kept: KV bytes that the plan keeps, of 1.
        groups: digest of the plan's groups and of a rate of its own; equal ones are trained once per seed.
        curve: scores after 0, 1, 2, … epochs; empty where the way has no such size.
        seconds: processor time, of planning, training and scoring.
    """

    subject: str
    way: str
    size: str
    seed: int
    kept: float
    groups: str
    curve: tuple[Scores, ...]
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from others."""
        return self.subject, self.way, self.size, self.seed


class Cells:
    """The finished cells of an experiment, in a file.

    Args:
        path: the file. settings: what all cells share; a file with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.found: dict[tuple[str, str, str, int], Cell] = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["settings"] != self.settings:
                raise SystemExit(
                    f"{path} holds cells of other settings ({kept['settings']}); give another --work"
                )
            cells = [Cell(**{**cell, "curve": tuple(cell["curve"])}) for cell in kept["cells"]]
            self.found = {cell.key: cell for cell in cells}

    def add(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.found[cell.key] = cell
        content = {"settings": self.settings, "cells": [asdict(each) for each in self.found.values()]}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.rename(self.path)

    def of(self, subject: str, way: str, size: str) -> list[Cell]:
        """The cells of all seeds."""
        return [cell for key, cell in sorted(self.found.items()) if key[:3] == (subject, way, size)]

    def same(self, subject: str, groups: str, seed: int) -> Cell | None:
        """A cell of the same conversion."""
        wanted = (subject, groups, seed)
        return next((c for c in self.found.values() if (c.subject, c.groups, c.seed) == wanted), None)


def run(
    cells: Cells, subject: Subject, ways: Ways, sizes: Sequence[str], seeds: int, epochs: int, work: Path
) -> None:
    """Run what is not finished yet, seed by seed."""
    asked = [(WHOLE, SOURCE, _UNCHANGED), *((size, way, ways[way]) for size in sizes for way in ways)]
    for seed in range(seeds):
        for size, way, options in asked:
            if (subject.name, way, size, seed) in cells.found:
                continue
            cell = run_cell(cells, subject, Trial(way, options, size, seed), epochs, work)
            cells.add(cell)
            scores = [f"{each[subject.score]:.4f}" for each in cell.curve]
            shown = " ".join(scores) or "has no such size"
            print(f"{subject.name}, {way}, {size}, seed {seed}: {shown} ({cell.seconds:.0f} s)", flush=True)


def run_cell(cells: Cells, subject: Subject, trial: Trial, epochs: int, work: Path) -> Cell:
    """Plan, convert, train and score."""
    began = time.process_time()
    source, seed = Source.open(subject.source), trial.seed
    plan = _plan(subject, source, trial, work)
    plan.check_source(source.fingerprint_like(plan.source.fingerprint), str(source.path))
    ratio, groups = plan.budget.kv_ratio, _digest(plan, trial.rate)
    same = cells.same(subject.name, groups, seed)
    curve: tuple[Scores, ...] = ()
    if ratio < REACHED * plan.budget.kv_ratio_asked:
        groups = ""
    elif same is not None:
        curve = same.curve
    else:
        converted = work / "converted"
        shutil.rmtree(converted, ignore_errors=True)
        convert_checkpoint(source, plan, subject.statistics(), converted, "")
        student, task = subject.student(converted), subject.task(seed)
        training = subject.options.changed(
            learning_rate=trial.rate * subject.options.learning_rate, seed=seed
        )
        curve = train(student, subject.teacher(), task, training, epochs, work, groups)
        shutil.rmtree(converted)
    return Cell(subject.name, trial.way, trial.size, seed, ratio, groups, curve, time.process_time() - began)


def _plan(subject: Subject, source: Source, trial: Trial, work: Path) -> Plan:
    """What a way makes of a size; kept."""
    chosen = trial.plan_options
    slug = re.sub(r"[^a-z0-9]+", "-", f"{trial.way} {trial.size} {chosen.seed}".lower())
    kept = work / f"plan-{slug}.json"
    if not kept.is_file():
        budget = BudgetOptions(kv_ratio=float(Fraction(trial.size)))
        measure = partial(subject.measure, chosen.merge)
        plan_within(source, budget, chosen, subject.statistics(), measure).plan.save(kept)
    return Plan.load(kept)


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    options: UptrainOptions,
    epochs: int,
    work: Path,
    job: str,
) -> tuple[Scores, ...]:
    """gqakit's training loop: the scores before it and after each epoch. Interrupted, it goes on at the last epoch."""
    per_step = options.per_step(1)
    steps = -(-task.sizes[0] // per_step)
    options = options.changed(max_steps=steps * epochs, warmup_steps=max(1, steps * epochs // 10))
    store = RunStore(work / "training")
    asked = {"job": job, **asdict(options)}
    if (store.directory / "run.json").is_file():
        kept = json.loads((store.directory / "run.json").read_text())
        begun = store.begin(asked, restart=kept != json.loads(json.dumps(asked)))
    else:
        begun = store.begin(asked, restart=False)
    if begun.step < steps * epochs:
        schedule = StepSchedule(steps * epochs, steps, steps)
        train_to_the_end(Training(student, teacher, task, options, schedule, store, "cpu"))
    lines = [json.loads(line) for line in store.metrics().decode().splitlines()]
    shutil.rmtree(store.directory)
    return tuple(
        {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
        for line in lines
        if "eval_loss" in line
    )


def _digest(plan: Plan, rate: float) -> str:
    merging = [plan.merging.key, plan.merging.value]
    decides = [merging, [[layer.key, layer.value] for layer in plan.layers], *([] if rate == 1 else [rate])]
    content = json.dumps(decides)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
