"""Short runs on a tiny pair of teacher and student."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiny_models import build

from gqakit.pipeline import convert
from gqakit.recovery.distil.uptrain import SUFFIX, UptrainResult, uptrain

SHORT: dict[str, Any] = {
    "window": 32,
    "tokens": 1280,
    "held_out": 4,
    "max_steps": 6,
    "eval_steps": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "gradient_accumulation_steps": 2,
}


@dataclass(frozen=True)
class Pair:
    """A teacher and what was made of it."""

    teacher: Path
    student: Path

    def run(
        self, out: str | Path, *, notice: Any = None, restart: bool = False, **changes: Any
    ) -> UptrainResult:
        """One run of `SHORT` with some changes."""
        watched = {"notice": notice} if notice else {}
        options = {**SHORT, "teacher": str(self.teacher), "restart": restart, "device": "cpu", **changes}
        return uptrain(self.student, out, progress=False, **watched, **options)


@cache
def pair(folder: Path, family: str = "llama", format: str = "grouped") -> Pair:
    """The tiny pair, made once: a random model and its conversion to 3 (uniform: 2) KV heads."""
    teacher = build(folder / f"{family}-{format}" / "teacher", family, num_hidden_layers=2)
    student = folder / f"{family}-{format}" / "student"
    heads = 3 if format == "grouped" else 2
    how = {"method": "neighbour", "merge": "mean", "allocation": "uniform", "format": format}
    convert(teacher, student, kv_heads=heads, tokens=256, window=32, evaluate=False, progress=False, **how)
    return Pair(teacher, student)


def work_directory(out: Path) -> Path:
    """Where a run is kept while it is not finished."""
    return out.with_name(out.name + SUFFIX)


class Killed(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


def killed_after(step: int) -> Any:
    """A notice that ends the run at the evaluation after a step."""

    def notice(at: int, scores: Any) -> None:
        if at == step:
            raise Killed

    return notice


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without what the clock says."""
    name = "metrics.jsonl" if directory.suffix == ".uptrain" else "gqakit-uptrain-metrics.jsonl"
    lines = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


__all__ = ["SHORT", "Killed", "Pair", "killed_after", "metrics", "pair", "work_directory"]
