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
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from gqakit.recovery.distil.devices import accelerated, prepare
from gqakit.recovery.distil.loop import Loop, Pace
from gqakit.recovery.distil.state import Store
from torch import nn

from gqakit.calibration.store import StatisticsFile
from gqakit.conversion.convert import convert_checkpoint
from gqakit.core.budget import resolve_budget
from gqakit.models.source import Source
from gqakit.planning.options import PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Measure, make_plan
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.task import Task
from gqakit.recovery.distil.trainable import parameter_groups

Scores = Mapping[str, float]
Ways = Mapping[str, Mapping[str, Any]]
"""Options of a plan by the name that a table gives them; `rate` beside them multiplies the rate of training."""
SOURCE, WHOLE = "source", "1"
"""A conversion that changes nothing, trained as the others are: its way and its size."""
_UNCHANGED = {"method": "neighbour", "merge": "mean", "allocation": "uniform"}
_BY_CHANCE = ("asymgqa", "qcqa")
REACHED = 0.95
"""A plan that keeps less than so much of the bytes asked for is of another size: the way has none of this one."""


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

    def moments(self) -> StatisticsFile | None:
        """Its moments; None where weights alone decide."""
        ...

    def measure(self, merge: str) -> Measure:
        """Measures what a layer's choices lose."""
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
class Cell:
    """One way at one size with one seed.

    Attributes:
        kept: KV bytes that the plan keeps, of 1.
        groups: digest of the plan's groups and of a rate of its own; equal ones are trained once a seed.
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
            cell = run_cell(cells, subject, way, options, size, seed, epochs, work)
            cells.add(cell)
            told = [f"{scores[subject.score]:.4f}" for scores in cell.curve]
            shown = " ".join(told) or "has no such size"
            print(f"{subject.name}, {way}, {size}, seed {seed}: {shown} ({cell.seconds:.0f} s)", flush=True)


def run_cell(
    cells: Cells,
    subject: Subject,
    way: str,
    options: Mapping[str, Any],
    size: str,
    seed: int,
    epochs: int,
    work: Path,
) -> Cell:
    """Plan, convert, train and score."""
    began = time.process_time()
    opened = Source.open(subject.source)
    source, spec = opened.checkpoint, opened.spec
    rate = float(options.get("rate", 1.0))
    plan = _plan(subject, way, {k: v for k, v in options.items() if k != "rate"}, size, seed, work)
    plan.check_source(source.fingerprint(plan.source.fingerprint), str(source.path))
    ratio, groups = plan.budget.kv_ratio, _digest(plan, rate)
    same = cells.same(subject.name, groups, seed)
    curve: tuple[Scores, ...] = ()
    if ratio < REACHED * plan.budget.kv_ratio_asked:
        groups = ""
    elif same is not None:
        curve = same.curve
    else:
        converted = work / "converted"
        shutil.rmtree(converted, ignore_errors=True)
        convert_checkpoint(source, spec, plan, subject.moments(), converted, "")
        student, task = subject.student(converted), subject.task(seed)
        training = replace(subject.options, learning_rate=rate * subject.options.learning_rate)
        curve = train(student, subject.teacher(), task, training, epochs, seed, work, groups)
        shutil.rmtree(converted)
    return Cell(subject.name, way, size, seed, ratio, groups, curve, time.process_time() - began)


def _plan(subject: Subject, way: str, options: Mapping[str, Any], size: str, seed: int, work: Path) -> Plan:
    """What a way makes of a size; kept, and for a method without chance the same for all seeds."""
    chosen = PlanOptions(**options, seed=seed if options["method"] in _BY_CHANCE else 0)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{way} {size} {chosen.seed}".lower())
    kept = work / f"plan-{slug}.json"
    if not kept.is_file():
        opened = Source.open(subject.source)
        source, spec = opened.checkpoint, opened.spec
        budget = resolve_budget(spec.cache, kv_ratio=float(Fraction(size)))
        weighs = chosen.allocation_for(budget, True).loss == "measured"
        measure = subject.measure(chosen.merge) if weighs else None
        made = make_plan(source, spec, budget, chosen, subject.moments(), measure=measure)
        made.save(kept)
    return Plan.load(kept)


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    options: UptrainOptions,
    epochs: int,
    seed: int,
    work: Path,
    job: str,
) -> tuple[Scores, ...]:
    """gqakit's training loop: the scores before it and after each epoch. Interrupted, it goes on at the last epoch."""
    per_step = options.per_device_batch_size * options.gradient_accumulation_steps
    steps = -(-task.sizes[0] // per_step)
    options = UptrainOptions(
        **{
            **asdict(options),
            "seed": seed,
            "max_steps": steps * epochs,
            "warmup_steps": max(1, steps * epochs // 10),
        }
    )
    store = Store(work / "training")
    store.directory.mkdir(parents=True, exist_ok=True)
    asked = {"job": job, **asdict(options)}
    if (store.directory / "run.json").is_file():
        kept = json.loads((store.directory / "run.json").read_text())
        begun = store.begin(asked, restart=kept != json.loads(json.dumps(asked)))
    else:
        begun = store.begin(asked, restart=False)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, options.weight_decay),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
    )
    with accelerated("cpu", "float32", ()) as accelerator:
        prepared = prepare(accelerator, student, teacher, optimizer, ())
        pace = Pace(steps * epochs, steps, steps)
        Loop(prepared, task, options, pace, store, lambda items: None, lambda step, scores: None).run(begun)
    lines = [json.loads(line) for line in store.metrics().decode().splitlines()]
    shutil.rmtree(store.directory)
    return tuple(
        {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
        for line in lines
        if "eval_loss" in line
    )


def _digest(plan: Plan, rate: float) -> str:
    merging = [plan.merging.key, plan.merging.value]
    told = [merging, [[layer.key, layer.value] for layer in plan.layers], *([] if rate == 1 else [rate])]
    content = json.dumps(told)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
