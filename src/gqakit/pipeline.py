"""`convert`, end to end: check, calibrate, plan, write, repair, measure, on one opened `Source`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from gqakit.calibration.calibrate import WITH_GRADIENTS, calibrate_source
from gqakit.calibration.options import CalibrateOptions
from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import (
    Checkpoint,
    WriteResult,
    check_output,
    claimed_directory,
    output_lock,
    write_bytes,
)
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.upload import check_upload, upload
from gqakit.conversion.convert import Writing, check_rules, check_statistics, convert_checkpoint, job_of
from gqakit.conversion.files import CARD_FILE
from gqakit.conversion.model_card import model_card
from gqakit.conversion.options import ConvertOptions
from gqakit.conversion.report import write_report
from gqakit.data.batches import Content, batches_of, check_content
from gqakit.data.options import read_named
from gqakit.data.text import Text
from gqakit.errors import UsageError
from gqakit.evaluation.evaluate import evaluate_sources
from gqakit.evaluation.page.charts import altair
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.agreement import check_convertible
from gqakit.models.processes import Processes
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.planning.decide import decide, requests_for
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.options import may_predict
from gqakit.planning.plan import Plan
from gqakit.planning.request import Request
from gqakit.progress import Reporter, duration, silent
from gqakit.recovery.repair.layers import LayerRepair
from gqakit.recovery.repair.options import FitOptions
from gqakit.recovery.repair.repair import repair_job, repair_windows, run_repair

STEPS = logging.getLogger("gqakit.steps")
"""Says what is about to be done, and how long it will take; the command line shows it."""
LONG = 60.0
"""Seconds of a step that are worth a word beforehand."""


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` did.

    Attributes:
        plan: what was carried out.
        out: where it went.
        bytes_written: of tensors; 0 on a dry run.
        resumed: whether an interrupted run was continued.
        repairs: what repair did to each layer; empty where it was not asked for.
        evaluation: the measured loss, source first; empty where it was not asked for.
        measured_on: what that was measured on, for a sentence.
        beside: files that were written beside the output and are used again by a second run.
        seconds: how long it took.
    """

    plan: Plan
    out: Path
    bytes_written: int
    resumed: bool
    repairs: tuple[LayerRepair, ...]
    evaluation: tuple[EvaluationRow, ...]
    measured_on: str
    beside: tuple[Path, ...]
    seconds: float

    def __repr__(self) -> str:
        made = self.plan.budget
        scores = "".join(f", {row.name}: {row.summary}" for row in self.evaluation)
        return (
            f"ConvertResult({self.out}, {made.kv_bytes_per_token_before:,} → {made.kv_bytes_per_token:,} bytes per "
            f"token{scores})"
        )


@takes(ConvertOptions)
def convert(
    model: str | Path, out: str | Path, options: ConvertOptions, progress: Reporter = silent
) -> ConvertResult:
    """Make a budget's plan and carry it out, or carry out a plan that is given.

    With a budget and no statistics the model is first calibrated on the data, and run once more to measure what each layer's
    candidates lose, where the allocation weighs that. Both are kept beside the output (`OUT.statistics.safetensors`,
    `OUT.losses.jsonl`) and used again by a second run on the same data. Interrupted, the same call goes on where it stopped.

    Args:
        model: directory or hub name. out: the new directory.
        options: see `ConvertOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        GqakitError: one of OutputError, PlanError, BudgetError, UsageError, CheckpointError, FamilyError, DataError.
    """
    started = time.monotonic()
    Processes.of_launch().alone("convert")
    job = Conversion.check(model, Path(out), options, progress)
    STEPS.info("Steps: %s.", ", ".join(job.steps()))
    statistics = job.calibrated()
    plan = job.planned(statistics)
    with output_lock(job.out) if not options.dry_run else nullcontext():
        written, repairs = job.written(plan, statistics)
        rows = job.measured(plan, statistics, bool(repairs))
        if options.push_to_hub and not options.dry_run:
            upload(job.out, options.push_to_hub)
    return ConvertResult(
        plan=plan,
        out=job.out,
        bytes_written=0 if written is None else written.nbytes,
        resumed=written is not None and bool(written.kept),
        repairs=tuple(repairs),
        evaluation=tuple(rows),
        measured_on=job.in_words(rows),
        beside=tuple(path for path in (job.statistics_file, job.losses_file) if path.is_file()),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Conversion:
    """One run of `convert`, checked: everything that can be known to be wrong was said before any work.

    Attributes:
        source: the model. out: the new directory. options: what was asked for. progress: hears of every step.
        content: what to calibrate, measure losses and repair on.
        asked: the budget with all that decides a plan, for each pair of cache types there is; empty where a plan is given.
        plan: the one that is given.
        held_out: what to measure the result on; None where it is not measured.
    """

    source: Source
    out: Path
    options: ConvertOptions
    progress: Reporter
    content: Content
    asked: Sequence[Request]
    plan: Plan | None
    held_out: Content | None

    @classmethod
    def check(cls, model: str | Path, out: Path, options: ConvertOptions, progress: Reporter) -> Conversion:
        """Open the source and read all data; see `convert` for what is raised."""
        plan = Plan.load(Path(options.plan)) if isinstance(options.plan, str | Path) else options.plan
        source = Source.open(model, options.stacks if plan is None else plan.source.stacks)
        check_convertible(source, strict=(options.format if plan is None else plan.format) != "uniform")
        check_output(source.checkpoint, out, options.overwrite)
        if options.push_to_hub:
            check_upload(options.push_to_hub)
        content = options.read()
        job = cls(source, out, options, progress, content, (), plan, None)
        if plan is None:
            job = replace(job, asked=job._requests())
        else:
            job._check_plan(plan)
        if job.calibrates:
            check_content(source.spec, content)
        if options.repair:
            repair_windows(source, content, job.repair_options)
        job = replace(job, held_out=job._held_out())
        if options.report is not None:
            altair()
            if job.held_out is None:
                raise UsageError(
                    "`report` shows what is measured, and nothing would be: give `evaluate=True`"
                )
        return job

    def _requests(self) -> list[Request]:
        """The request, or one for each pair of cache types that may be chosen."""
        options = self.options
        given = options.statistics and StatisticsFile.open(options.statistics)
        known = may_predict(options.layer_loss, options.losses) and (not given or given.has_gradients)
        return requests_for(
            self.source.spec, options, options, measurable=True, predictable=known, workers=options.workers
        )

    @property
    def request(self) -> Request | None:
        """The one with the fewest bytes for each element of the cache; None where a plan is given."""
        return self.asked[-1] if self.asked else None

    @property
    def calibrates(self) -> bool:
        """Whether the model is calibrated here."""
        return self.plan is None and self.options.statistics is None

    @property
    def statistics_file(self) -> Path:
        """Where a calibration is kept."""
        return self.out.with_name(self.out.name + ".statistics.safetensors")

    @property
    def losses_file(self) -> Path:
        """Where measured losses are kept."""
        return self.options.losses or self.out.with_name(self.out.name + ".losses.jsonl")

    @property
    def repair_options(self) -> FitOptions:
        """How much to repair."""
        options = self.options
        return FitOptions(tokens=options.repair_tokens, window=options.window, steps=options.repair_steps)

    def steps(self) -> list[str]:
        """What will be done, in words, with the amount of each step."""
        options, size = self.options, f"{self.source.checkpoint.nbytes / 2**20:,.0f} MiB"
        steps = []
        if self.calibrates:
            amount = (
                f"up to {options.tokens:,} tokens" if isinstance(self.content, Text) else self.content.name
            )
            steps.append(f"calibrate on {amount}")
        if self.request is not None and (count := self.request.measured_candidates):
            about = "about " if self.request.loss == "corrected" else ""
            steps += [
                f"measure losses of {about}{count} candidates, on up to {options.measure_tokens:,} tokens each"
            ]
        steps += ["plan"] if self.plan is None else []
        steps += [] if options.dry_run else [f"write {size}"]
        steps += [f"repair on up to {options.repair_tokens:,} tokens"] if options.repair else []
        return [*steps, f"measure the loss on {self.held_out.name}"] if self.held_out else steps

    def _say_time(self, tokens: int, seconds: float) -> None:
        """From the time of a run over the tokens, what measuring losses will take: half of the layers run, on average."""
        count = 0 if self.request is None else self.request.measured_candidates
        rest = seconds / max(tokens, 1) * min(self.options.measure_tokens, tokens) * count / 2
        if rest > LONG:
            STEPS.info("Measuring losses will take about %s.", duration(rest))

    def _check_plan(self, plan: Plan) -> None:
        """A plan that is given must be for this model, for the engine that is asked for, and known to this gqakit."""
        plan.check_source(self.source.fingerprint_like(plan.source.fingerprint), self.source.name)
        if self.options.engine is not None:
            plan.check_engine(self.options.engine)
        check_rules(plan)

    def _held_out(self) -> Content | None:
        """What to measure on, read, so that what is wrong with it is said before the conversion and not after it."""
        options, spec = self.options, self.source.spec
        wanted = options.evaluate if options.evaluate is not None else options.evaluate_text is not None
        if options.evaluate is None and options.evaluate_text is None:
            wanted = self.calibrates and spec.family.data == "text"
        if not wanted:
            return None
        content = read_named(options.evaluate_text, "evaluation")
        check_content(spec, content)
        if isinstance(content, Text):
            batches_of(
                self.source, content, window=self.options.scoring.window, tokens=self.options.scoring.tokens
            )
        return content

    def calibrated(self) -> StatisticsFile | None:
        """The statistics: those that are given or that the plan names, those of an earlier run, or new ones."""
        options, plan = self.options, self.plan
        if plan is not None:
            return plan.statistics(options.statistics)
        if options.statistics is not None:
            return StatisticsFile.open(options.statistics)
        predicts = self.request is not None and self.request.loss in ("predicted", "corrected")
        if self.statistics_file.is_file():
            found = StatisticsFile.open(self.statistics_file)
            model = self.source.fingerprint_like(found.header.fingerprint)
            data = self.content.sha256, options.tokens, options.window
            if found.matches(model, *data, gradients=predicts):
                return found
        with output_errors(self.statistics_file.parent):
            self.statistics_file.parent.mkdir(parents=True, exist_ok=True)
        how = CalibrateOptions(
            tokens=options.tokens, window=options.window, gradients=predicts, **self.options.running
        )
        started = time.monotonic()
        made = calibrate_source(self.source, self.statistics_file, self.content, how, self.progress)
        runs = WITH_GRADIENTS if predicts else 1  # forwards
        self._say_time(made.header.tokens, (time.monotonic() - started) / runs)
        return made

    def planned(self, statistics: StatisticsFile | None) -> Plan:
        """The plan that is given, or one within the budget."""
        plan = self.plan
        if plan is None:
            plan = self._made(statistics)
        check_statistics(plan, statistics)
        if not self.options.repair:
            check_output(self.source.checkpoint, self.out, self.options.overwrite, job=job_of(plan))
        return plan

    def _made(self, statistics: StatisticsFile | None) -> Plan:
        assert self.request is not None
        options = self.options

        def measurement() -> Measurement:
            on = self.source, statistics, options.merge, self.content, options.window
            return Measurement.on(*on, options, self.progress).kept_in(self.losses_file)

        choose = options.kv_cache == "auto"
        return decide(self.source, self.asked, statistics, measurement, self.progress, choose=choose).plan

    def written(
        self, plan: Plan, statistics: StatisticsFile | None
    ) -> tuple[WriteResult | None, list[LayerRepair]]:
        """The checkpoint, repaired where that was asked for; nothing on a dry run."""
        options, source = self.options, self.source
        if options.dry_run:
            return None, []
        if not options.repair:
            return self._convert(plan, statistics, self.out), []
        # What the writer puts into a claimed directory it adds to the list of what may be removed from it.
        with claimed_directory(self.out, ".unrepaired", ()) as target:
            written = self._convert(plan, statistics, target)
            converted = Checkpoint.open(str(target))
            job = repair_job(source, converted, plan, self.content, self.repair_options, options)
            repairs, _ = run_repair(job, self.out, overwrite=options.overwrite, progress=self.progress)
        return written, repairs

    def _convert(self, plan: Plan, statistics: StatisticsFile | None, target: Path) -> WriteResult:
        overwrite = self.options.overwrite or self.options.repair
        card = model_card(plan, self.source.path)
        with self.progress("convert", self.source.checkpoint.nbytes, "bytes") as advance:
            how = Writing(overwrite, self.options.workers, advance)
            return convert_checkpoint(self.source, plan, statistics, target, card, how)

    def measured(self, plan: Plan, statistics: StatisticsFile | None, repaired: bool) -> list[EvaluationRow]:
        """The loss, measured and stated in the model card, and on a page where that is asked for."""
        if self.held_out is None or self.options.dry_run:
            return []
        converted = Source.open(self.out)
        scoring = self.options.scoring.changed(kv_cache=None if plan.cache is None else plan.cache.types)
        rows = evaluate_sources(self.source, [converted], self.held_out, scoring, self.progress)
        card = model_card(plan, self.source.path, rows, self.in_words(rows), repaired=repaired)
        write_bytes(self.out / CARD_FILE, card.encode())
        if self.options.report is not None:
            words = self.options.words(without=("overwrite", "push_to_hub", "report"))
            command = ["gqakit", "convert", self.source.name, *words, "-o", self.out]
            write_report(
                self.options.report, self.source, statistics, rows, plan, self.in_words(rows), command
            )
        return rows

    def in_words(self, rows: Sequence[EvaluationRow]) -> str:
        """What the loss was measured on, for a sentence."""
        if not rows or self.held_out is None:
            return ""
        return f"{self.held_out.name}, {rows[0].sample(self.options.scoring.window)}"
