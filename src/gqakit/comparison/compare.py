"""`compare`: ways × budgets at equal bytes on one model, resumable cell by cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqakit.calibration.calibrate import calibrate_source
from gqakit.calibration.options import CalibrateOptions
from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.workspace import claim, output_lock, remove_claimed
from gqakit.comparison.cells import Cell, Cells
from gqakit.comparison.options import CompareOptions
from gqakit.comparison.ways import Way
from gqakit.conversion.options import ConvertOptions
from gqakit.conversion.report import ORIGINAL, layers_of, page_of
from gqakit.data.batches import Content, check_content
from gqakit.data.samples import Images, Speech
from gqakit.data.text import Text
from gqakit.errors import BudgetError, UsageError
from gqakit.evaluation.evaluate import evaluate_sources
from gqakit.evaluation.page.charts import altair
from gqakit.evaluation.page.content import scores_of
from gqakit.evaluation.page.write import write_page
from gqakit.evaluation.table import EvaluationRow
from gqakit.grouping_methods.qcqa.evolution import check_pymoo
from gqakit.models.generate import generate
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.pipeline import convert
from gqakit.progress import Reporter, duration, silent

STEPS = logging.getLogger("gqakit.steps")
PAGE = "comparison.html"
WORK = "work"


@dataclass(frozen=True)
class Comparison:
    """What `compare` made.

    Attributes:
        cells: the source first, then every way at every budget. scored_on: what, in words.
        file: all of it as JSON. page: the HTML page. seconds: of this run.
    """

    cells: tuple[Cell, ...]
    scored_on: str
    file: Path
    page: Path
    seconds: float

    def __repr__(self) -> str:
        return f"Comparison({len(self.cells) - 1} conversions, {self.page})"


@takes(CompareOptions)
def compare(
    model: str | Path, out: str | Path, options: CompareOptions, progress: Reporter = silent
) -> Comparison:
    """Convert a model in several ways to several budgets, score each, and write a table and a page.

    All ways share one calibration, and measured losses where they merge alike. Each cell is kept when it is done:
    interrupted, the same call goes on at the next one.

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
        finished = tuple(cells.found[name] for name in [ORIGINAL, *(trial.name for trial in run.trials())])
        failed = "".join(f" {each.name} cannot be made: {each.why_not}." for each in finished if each.why_not)
        points = [each.point for each in finished if each.scores]
        note = f"Scored on {run.scored_in_words}.{failed}"
        page = page_of(run.source, run.statistics(), points, note, run.settings, options.prompt)
        write_page(page, run.page)
    return Comparison(finished, run.scored_in_words, cells.path, run.page, time.monotonic() - started)


@dataclass(frozen=True)
class Trial:
    """One cell to be: a way at a budget, repaired or not."""

    way: Way
    budget: str
    ratio: float
    repaired: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.label} {self.budget}"

    @property
    def label(self) -> str:
        """The way, with what is done afterwards."""
        return f"{self.way.name}, repaired" if self.repaired else self.way.name

    @property
    def slug(self) -> str:
        """The name of its directory."""
        return self.name.replace(", ", "-").replace(" ", "-").replace("/", "-of-")


@dataclass(frozen=True)
class _Run:
    """One run of `compare`, checked before any work."""

    source: Source
    out: Path
    options: CompareOptions
    content: Content
    held_out: Content
    progress: Reporter

    @classmethod
    def check(cls, model: str | Path, out: Path, options: CompareOptions, progress: Reporter) -> _Run:
        source = Source.open(model, options.stacks)
        source.check_not_grouped()
        content, held_out = options.read(), options.scored_on.read("evaluation")
        check_content(source.spec, content)
        check_content(source.spec, held_out)
        if options.repair and not isinstance(content, Text):
            raise UsageError("`repair` runs on text, and this comparison is calibrated on something else")
        return cls(source, out, options, content, held_out, progress)

    @property
    def page(self) -> Path:
        return self.out / PAGE

    @property
    def settings(self) -> dict[str, object]:
        """What all cells share: other settings are another comparison."""
        options, scored = self.options, self.options.scored_on
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
            "seed": options.seed,
            "prompt": options.prompt,
            "new tokens": options.max_new_tokens,
        }

    @property
    def scored_in_words(self) -> str:
        return str(self.settings["scored on"])

    def trials(self) -> Iterator[Trial]:
        """The cells, way by way."""
        for chosen in self.options.chosen:
            for budget, ratio in self.options.budgets.items():
                yield Trial(chosen, budget, ratio)
        if self.options.repair:
            for budget, ratio in self.options.budgets.items():
                yield Trial(self.options.way("fold"), budget, ratio, repaired=True)

    def finish(self, cells: Cells) -> None:
        """Run every cell that is not finished yet."""
        missing = [trial for trial in self.trials() if trial.name not in cells.found]
        if ORIGINAL not in cells.found:
            cells.add(self._original())
        if not missing:
            return
        STEPS.info("%d conversions to make and score, %d are there.", len(missing), len(cells.found) - 1)
        work = self.out / WORK
        claim(work, ("*/*",))  # what conversions leave in their own directories
        self.statistics()
        started = time.monotonic()
        for done, trial in enumerate(missing):
            if done:
                left = (time.monotonic() - started) / done * (len(missing) - done)
                STEPS.info("%s: about %s left for all.", trial.name, duration(left))
            cells.add(self._cell(trial, (self.out if self.options.keep else work) / trial.slug))
        remove_claimed(work)

    def _original(self) -> Cell:
        """The source itself, scored; from its time follows what the whole will take."""
        started = time.monotonic()
        (row,) = evaluate_sources(self.source, [], self.held_out, self.options.scored_on, self.progress)
        seconds = time.monotonic() - started
        cells = len([*self.trials()])
        STEPS.info(
            "Scoring the source took %s; scoring %d conversions beside it will take about %s, after a calibration and "
            "what their plans take.", duration(seconds), cells, duration(3 * seconds * cells),
        )  # fmt: skip
        return Cell(
            name=ORIGINAL, way=ORIGINAL, budget="", text=self._continued(self.source.path), seconds=seconds,
            **_sizes(row),
        )  # fmt: skip

    def statistics(self) -> StatisticsFile:
        """The calibration that all cells share, made once."""
        return self._statistics

    @cached_property
    def _statistics(self) -> StatisticsFile:
        path, options = self.out / "statistics.safetensors", self.options
        if path.is_file():
            found = StatisticsFile.open(path)
            fingerprint = self.source.fingerprint_like(found.header.fingerprint)
            if found.matches(fingerprint, self.content.sha256, options.tokens, options.window):
                return found
        weighed = options.allocation != "uniform"  # by losses, which are predicted from gradients
        how = CalibrateOptions(
            tokens=options.tokens, window=options.window, gradients=weighed, device=options.device
        )
        return calibrate_source(self.source, path, self.content, how, self.progress)

    def _cell(self, trial: Trial, target: Path) -> Cell:
        """Convert and score; where the budget cannot be met, say why."""
        started, options = time.monotonic(), self.options
        command = f"gqakit convert {self.source.name} --kv-ratio {trial.ratio:.6g} {trial.way.flags}"
        named: dict[str, Any] = {"name": trial.name, "way": trial.label, "budget": trial.budget}
        asked: dict[str, Any] = dict(
            kv_ratio=trial.ratio, **trial.way.options, stacks=options.stacks,
            statistics=self._statistics.path, losses=self.out / f"losses-{trial.way.merge}.jsonl",
            measure_tokens=options.measure_tokens, workers=options.workers, device=options.device,
            window=options.window, **_named(self.content),
            repair=trial.repaired, evaluate=False, overwrite=target.exists(),
        )  # fmt: skip
        try:
            made = convert(self.source.path, target, options=ConvertOptions.of(asked), progress=self.progress)
        except BudgetError as error:
            return Cell(**named, why_not=str(error), command=command)
        rows = evaluate_sources(
            self.source, [Source.open(target)], self.held_out, options.scored_on, self.progress
        )
        layers = tuple(map(astuple, layers_of(self.source.spec, made.plan)))
        return Cell(
            **named, **_sizes(rows[1]), layers=layers, text=self._continued(target),
            seconds=time.monotonic() - started, command=f"{command} --repair" if trial.repaired else command,
        )  # fmt: skip

    def _continued(self, path: Path) -> str:
        """The continuation of the prompt, of what writes text."""
        if not self.options.max_new_tokens or self.source.spec.family.task != "text":
            return ""
        return generate(path, self.options.prompt, max_new_tokens=self.options.max_new_tokens)


def _named(content: Content) -> dict[str, Any]:
    """Data that is read, as the option that takes it."""
    kinds = ((Text, "text"), (Images, "images"), (Speech, "audio"))
    return {name: content for kind, name in kinds if isinstance(content, kind)}


def _sizes(row: EvaluationRow) -> dict[str, Any]:
    """What a cell notes of a scored checkpoint."""
    return {"kv_bytes": row.kv_bytes_per_token, "kv_ratio": row.kv_ratio, "scores": scores_of(row)}
