"""`compare`: ways × budgets at equal bytes on one model, resumable cell by cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqakit.calibration.calibrate import WITH_GRADIENTS, calibrate_source
from gqakit.calibration.options import CalibrateOptions
from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.workspace import claim, output_lock, remove_claimed
from gqakit.comparison.caches import cache_points, called
from gqakit.comparison.cells import Cell, Cells
from gqakit.comparison.forecast import making_times
from gqakit.comparison.options import CompareOptions
from gqakit.comparison.trials import Trial, scoring_command, trials
from gqakit.conversion.options import ConvertOptions
from gqakit.conversion.report import ORIGINAL, layers_of, page_of
from gqakit.core.cache_types import CachePair
from gqakit.data.batches import Content, check_content
from gqakit.data.samples import Images, Speech, positions_of
from gqakit.data.text import Text
from gqakit.errors import BudgetError, UsageError
from gqakit.evaluation.evaluate import Evaluation, evaluation_of
from gqakit.evaluation.page.charts import altair
from gqakit.evaluation.page.content import scores_of
from gqakit.evaluation.page.write import write_page
from gqakit.evaluation.table import EvaluationRow
from gqakit.evaluation.tasks import TaskScoring
from gqakit.grouping_methods.qcqa.evolution import check_pymoo
from gqakit.models.agreement import check_convertible
from gqakit.models.architectures import writes_text
from gqakit.models.generate import generate
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.pipeline import convert
from gqakit.planning.layers import looking_once
from gqakit.progress import Reporter, duration, silent

STEPS = logging.getLogger("gqakit.steps")
PAGE = "comparison.html"
WORK = "work"


@dataclass(frozen=True)
class Comparison:
    """What `compare` made.

    Attributes:
        cells: the source first, then every way at every budget, each in 16 bits and then in each type of cache.
        scored_on: what, in words. file: all of it as JSON. page: the HTML page. seconds: of this run.
    """

    cells: tuple[Cell, ...]
    scored_on: str
    file: Path
    page: Path
    seconds: float

    def __repr__(self) -> str:
        made = sum(1 for cell in self.cells[1:] if not cell.cache)
        return f"Comparison({made} conversions, {self.page})"


@takes(CompareOptions)
def compare(
    model: str | Path, out: str | Path, options: CompareOptions, progress: Reporter = silent
) -> Comparison:
    """Convert a model in several ways to several budgets, score each, and write a table and a page.

    All ways share one run of the source, one calibration, and measured losses where they merge alike; all budgets of a way
    share what its layers have to choose from; a checkpoint is made
    once, and scored with its cache in 16 bits and in each of the types asked for, as the source is. Each cell is kept when
    it is done: interrupted, the same call goes on at the next one.

    Args:
        model: directory or hub name. out: directory for the page, the results and what is shared.
        options: see `CompareOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        MissingDependencyError: without the `page` extra, or `qcqa` for that way.
        GqakitError: one of OutputError, BudgetError, UsageError, CheckpointError, FamilyError, DataError.
    """
    started = time.monotonic()
    altair()
    if any(each.options["method"] == "qcqa" for each in options.chosen):
        check_pymoo()
    run = _Run.check(model, Path(out), options, progress)
    with output_lock(run.out):
        with output_errors(run.out):
            run.out.mkdir(parents=True, exist_ok=True)
        cells = Cells(run.out, run.settings, overwrite=options.overwrite)
        run.finish(cells)
        names = (called(name, pair) for name in run.checkpoints for pair in (None, *run.caches))
        finished = tuple(cells.found[name] for name in names if name in cells.found)
        failed = "".join(f" {each.name} cannot be made: {each.why_not}." for each in finished if each.why_not)
        points = [each.point for each in finished if each.scores]
        note = f"Scored on {run.scored_in_words}.{failed}"
        page = page_of(run.source, run.statistics(), points, note, run.settings, options.prompt)
        write_page(page, run.page)
    return Comparison(finished, run.scored_in_words, cells.path, run.page, time.monotonic() - started)


@dataclass(frozen=True)
class _Run:
    """One run of `compare`, checked before any work."""

    source: Source
    out: Path
    options: CompareOptions
    content: Content
    held_out: Content
    caches: tuple[CachePair, ...]
    tasks: TaskScoring | None
    progress: Reporter

    @classmethod
    def check(cls, model: str | Path, out: Path, options: CompareOptions, progress: Reporter) -> _Run:
        source = Source.open(model, options.stacks)
        check_convertible(source)
        caches = cache_points(options.kv_cache, source.spec)
        content, held_out = options.read(), options.scored_on.read("evaluation")
        check_content(source.spec, content)
        check_content(source.spec, held_out)
        if options.repair and not isinstance(content, Text):
            raise UsageError("`repair` runs on text, and this comparison is calibrated on something else")
        tasks = options.questions and TaskScoring.of(source, (), options.questions, progress)
        return cls(source, out, options, content, held_out, caches, tasks, progress)

    @property
    def page(self) -> Path:
        return self.out / PAGE

    @property
    def settings(self) -> dict[str, object]:
        """What all cells share: other settings are another comparison."""
        options, scored = self.options, self.options.scored_on
        first = f", the first {options.limit:,} questions of each" if options.limit else ""
        return {
            "model": self.source.name,
            "fingerprint": self.source.fingerprint,
            "calibrated on": f"{self.content.name}, up to {options.tokens:,} tokens in windows of {options.window}",
            "calibration data": self.content.sha256,
            "scored on": f"{self.held_out.name}, up to {scored.tokens:,} tokens in windows of {scored.window}",
            "scored data": self.held_out.sha256,
            "layers": ", ".join(self.source.spec.stacks),
            "allocation": options.allocation,
            "maps of keys and values": options.kv_maps,
            "losses measured on": f"up to {options.measure_tokens:,} tokens",
            "KV bytes": "of 16 bits a number, or of the types of the cache with their scales",
            "seed": options.seed,
            "prompt": options.prompt,
            "new tokens": options.max_new_tokens,
            **({"tasks": f"{', '.join(options.tasks)}{first}"} if options.tasks else {}),
            **({"task data": self.tasks.sha256} if self.tasks else {}),
        }

    @property
    def scored_in_words(self) -> str:
        return str(self.settings["scored on"])

    @property
    def checkpoints(self) -> list[str]:
        """The names of the source and of what is made of it."""
        return [ORIGINAL, *(trial.name for trial in trials(self.options))]

    def unscored(self, name: str, cells: Cells) -> list[CachePair | None]:
        """The caches, None for 16 bits, that a checkpoint is still to be scored in; none of what cannot be made."""
        if name in cells.found and cells.found[name].why_not:
            return []
        return [pair for pair in (None, *self.caches) if called(name, pair) not in cells.found]

    def finish(self, cells: Cells) -> None:
        """Run every cell that is not finished yet."""
        if not any(self.unscored(name, cells) for name in self.checkpoints):
            return
        started, scored_on = time.monotonic(), self.options.scored_on
        with evaluation_of(self.source, self.held_out, scored_on, self.progress, halves=True) as scoring:
            tokens = sum(map(positions_of, scoring.batches.values()))
            per_token = (time.monotonic() - started) / max(tokens, 1)
            self._score(cells, scoring, self.source, Cell(name=ORIGINAL, way=ORIGINAL, budget=""), started)
            missing = [trial for trial in trials(self.options) if self.unscored(trial.name, cells)]
            if missing:
                with looking_once():
                    self._convert(cells, scoring, missing, self._foreseen(cells, missing, per_token))

    def _foreseen(self, cells: Cells, missing: Sequence[Trial], per_token: float) -> list[float]:
        """Calibrate, and say what the whole will take: scoring as the source took, the rest as `making_times` has it."""
        scoring = max(cells.found[called(ORIGINAL, pair)].seconds for pair in (None, *self.caches))
        points = [len(self.unscored(trial.name, cells)) for trial in missing]
        runs = WITH_GRADIENTS if self.weighs else 1
        if self._known_statistics is None:
            STEPS.info(
                "Scoring %d points will take about %s, calibrating before it about %s; a look at one layer then tells what "
                "plans take.",
                sum(points), duration(scoring * sum(points)), duration(per_token * self.options.tokens * runs),
            )  # fmt: skip
        statistics, asked = self.statistics(), [(trial, self._asked(trial)) for trial in missing]
        times = making_times(self.source, statistics, asked, per_token, self.progress)
        points = [0 if each is None else count for each, count in zip(times, points, strict=True)]
        making = [each or 0.0 for each in times]
        STEPS.info(
            "%d points of %d conversions will take about %s: scoring %s, plans%s %s. %d are there.",
            sum(points), len(missing) - times.count(None), duration(scoring * sum(points) + sum(making)),
            duration(scoring * sum(points)), " and repairs" if self.options.repair else "", duration(sum(making)),
            len(cells.found),
        )  # fmt: skip
        return [scoring * count + each for count, each in zip(points, making, strict=True)]

    def _convert(
        self, cells: Cells, scoring: Evaluation, missing: Sequence[Trial], foreseen: Sequence[float]
    ) -> None:
        """Make each conversion, score it in every cache, and throw it away."""
        work = self.out / WORK
        claim(work, ("*/*",))  # what conversions leave in their own directories
        began = time.monotonic()
        for done, trial in enumerate(missing):
            started = time.monotonic()
            if done:
                left = sum(foreseen[done:]) * (started - began) / max(sum(foreseen[:done]), 1e-9)
                STEPS.info("%s: about %s left for all.", trial.name, duration(left))
            target = (self.out if self.options.keep else work) / trial.slug
            cell = self._made(trial, target)
            if cell.why_not:
                cells.add(cell)
            else:
                self._score(cells, scoring, Source.open(target), cell, started)
        remove_claimed(work)

    def _score(self, cells: Cells, scoring: Evaluation, each: Source, made: Cell, started: float) -> None:
        """Score a checkpoint in the caches that are missing, and keep each cell as soon as it is there.

        Args:
            cells, scoring: of the comparison. each: the checkpoint.
            made: its cell in 16 bits, but for scores. started: when work on it began.
        """
        directory = "" if each is self.source else each.short_name
        for pair in self.unscored(made.name, cells):
            row = scoring.original if each is self.source and pair is None else scoring.row(each, pair)
            rounded = {} if pair is None else {
                "name": called(made.name, pair), "cache": pair.name,
                "command": scoring_command(self.source.name, directory, pair, self.options),
            }  # fmt: skip
            text = self._continued(each.path, pair)
            answered = {} if self.tasks is None else self.tasks.scores_of(each, pair)
            scores = {**scores_of(row), **answered}
            scored = {**_sizes(row), "scores": scores, "text": text, "seconds": time.monotonic() - started}
            cells.add(made.model_copy(update={**scored, **rounded}))
            started = time.monotonic()

    @property
    def weighs(self) -> bool:
        """Whether budgets are spent by losses, which are predicted from gradients."""
        return self.options.allocation != "uniform"

    def statistics(self) -> StatisticsFile:
        """The calibration that all cells share, made once."""
        return self._statistics

    @property
    def _known_statistics(self) -> StatisticsFile | None:
        """The calibration, where an earlier run has made it."""
        path, options = self._statistics_file, self.options
        if not path.is_file():
            return None
        found = StatisticsFile.open(path)
        fingerprint = self.source.fingerprint_like(found.header.fingerprint)
        same = found.matches(fingerprint, self.content.sha256, options.tokens, options.window)
        return found if same else None

    @property
    def _statistics_file(self) -> Path:
        return self.out / "statistics.safetensors"

    @cached_property
    def _statistics(self) -> StatisticsFile:
        if (found := self._known_statistics) is not None:
            return found
        options = self.options
        how = CalibrateOptions(
            tokens=options.tokens, window=options.window, gradients=self.weighs, device=options.device
        )
        return calibrate_source(self.source, self._statistics_file, self.content, how, self.progress)

    def _asked(self, trial: Trial) -> ConvertOptions:
        """What `convert` is asked for."""
        options = self.options
        asked: dict[str, Any] = dict(
            kv_ratio=trial.ratio, **trial.way.options, stacks=options.stacks,
            statistics=self._statistics.path, losses=self.out / f"losses-{trial.way.merge}.jsonl",
            measure_tokens=options.measure_tokens, workers=options.workers, device=options.device,
            window=options.window, **_named(self.content), repair=trial.repaired, evaluate=False,
        )  # fmt: skip
        return ConvertOptions.of(asked)

    def _made(self, trial: Trial, target: Path) -> Cell:
        """Convert; where the budget cannot be met, the cell says why."""
        command = trial.command(self.source.name, self.options)
        cell = Cell(name=trial.name, way=trial.label, budget=trial.budget, command=command)
        asked = self._asked(trial).changed(overwrite=target.exists())
        try:
            made = convert(self.source.path, target, options=asked, progress=self.progress)
        except BudgetError as error:
            return cell.model_copy(update={"why_not": str(error)})
        layers = tuple(map(astuple, layers_of(self.source.spec, made.plan)))
        return cell.model_copy(update={"layers": layers})

    def _continued(self, path: Path, pair: CachePair | None) -> str:
        """The continuation of the prompt, of what writes text."""
        if not self.options.max_new_tokens or not writes_text(self.source.checkpoint.config):
            return ""
        types = None if pair is None else pair.name
        return generate(path, self.options.prompt, max_new_tokens=self.options.max_new_tokens, kv_cache=types)


def _named(content: Content) -> dict[str, Any]:
    """Data that is read, as the option that takes it."""
    kinds = ((Text, "text"), (Images, "images"), (Speech, "audio"))
    return {name: content for kind, name in kinds if isinstance(content, kind)}


def _sizes(row: EvaluationRow) -> dict[str, Any]:
    """What a cell notes of the cache of a checkpoint."""
    return {"kv_bytes": row.kv_bytes_per_token, "kv_ratio": row.kv_ratio}
