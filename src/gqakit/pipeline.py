"""`convert`: the whole flow from a checkpoint and a budget to a smaller-cache checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gqakit.calibration.calibrate import TOKENS, WINDOW, calibrate_opened, check_not_grouped
from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint, check_output, write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.conversion.convert import check_moments, check_rules, convert_checkpoint, job_of
from gqakit.conversion.files import CARD_FILE
from gqakit.conversion.model_card import model_card
from gqakit.data.batches import Content, DataSource, batches_of, check_content, read_source
from gqakit.data.text import Text
from gqakit.errors import PlanError, UsageError
from gqakit.evaluation.evaluate import TOKENS as EVALUATION_TOKENS
from gqakit.evaluation.evaluate import evaluate
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.inspection import open_model
from gqakit.models.source import Source
from gqakit.planning.make import MEASURED_TOKENS, BudgetOptions, MeasureOptions, PlanOptions, explore_opened
from gqakit.planning.options import check_budget
from gqakit.planning.plan import Plan
from gqakit.progress import Reporter, silent
from gqakit.recovery.repair.layers import LayerRepair
from gqakit.recovery.repair.options import FitOptions
from gqakit.recovery.repair.repair import repair_job, repair_windows, run_repair


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
    """

    plan: Plan
    out: Path
    bytes_written: int
    resumed: bool
    repairs: tuple[LayerRepair, ...]
    evaluation: tuple[EvaluationRow, ...]


def convert(
    model: str,
    out: Path,
    *,
    plan: Plan | None = None,
    budget: BudgetOptions | None = None,
    options: PlanOptions | None = None,
    moments: Path | None = None,
    layer_losses: MeasureOptions | None = None,
    text: DataSource = ("calibration",),
    measure: bool | None = None,
    evaluate_on: DataSource | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    device: str = "auto",
    repair: FitOptions | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> ConvertResult:
    """Carry out a plan, or make one within a budget and carry it out.

    With a budget and no moments the model is first calibrated on `text`, and run once more to measure what each layer's
    choices lose, where the allocation asks for that. Both are kept beside the output (`OUT.moments.safetensors`,
    `OUT.losses.jsonl`) and used again by a second run on the same text. Interrupted, the same call goes on where it
    stopped.

    Args:
        model: directory or hub name.
        out: the new directory.
        plan: carry out this one; its moments are looked for where it says, unless `moments` is given.
        budget, options: make a plan instead. The engine of the options goes for a plan that is given, too.
        moments: a moments file.
        layer_losses: how to measure what a layer's choices lose; None does so on `text` where the model is calibrated
            anyway, and else lets the merge rule's own error stand in.
        text, tokens, window: what to calibrate on; see `calibrate`.
        measure: evaluate source and result on `evaluate_on` and state the loss in the model card; None does
            so where the model is run for calibration anyway. In windows of `window` tokens, but no longer than 512.
        evaluate_on: like `text`; None for the held-out text that comes with gqakit. A model that does not run on text is
            only evaluated where this is given.
        device: for calibration, repair and evaluation.
        repair: then repair the conversion on `text`; see `gqakit.repair`. Language models alone.
        dry_run: check and decide everything, write no checkpoint.
        overwrite: replace a checkpoint in `out`.
        progress: see the package.

    Raises:
        OutputError, PlanError, BudgetError, UsageError, CheckpointError, FamilyError, DataError.
    """
    if (plan is None) == (budget is None):
        raise UsageError("give either a plan (--plan) or a budget (--kv-ratio or another), not both")
    stacks = (options or PlanOptions()).stacks if plan is None else plan.source.stacks
    source, spec = open_model(model, stacks)
    check_not_grouped(source, spec)
    check_output(source, out, overwrite)
    content = read_source(text)
    calibrating = plan is None and moments is None
    if calibrating:
        check_content(spec, content)
    measured = min(window, WINDOW)  # a long calibration window need not fit the held-out text
    held_out = None
    if calibrating if measure is None else measure:
        on_text = spec.family.task in ("text", "embedding", "translation")
        if evaluate_on is not None or on_text:
            held_out = read_source(("evaluation",) if evaluate_on is None else evaluate_on)
    if held_out:  # what is wrong with this text is said before the conversion, not after it
        check_content(spec, held_out)
        if isinstance(held_out, Text):
            batches_of(source, spec, held_out, window=measured, tokens=EVALUATION_TOKENS)
    opened_source = Source(model, source, spec)
    if repair is not None:
        repair_windows(opened_source, content, repair)
    if plan is not None:
        plan.check_source(source.fingerprint(), model)
        if options is not None and options.engine is not None:
            plan.check_engine(options.engine)
        check_rules(plan)
        opened = None if plan.moments is None else _planned_moments(plan, moments)
    else:
        assert budget is not None
        options = options or PlanOptions()
        options.check_engine(spec.family.model_type)
        check_budget(
            spec, budget.resolve(spec), options, measurable=True
        )  # an impossible one is said before the calibration
        if moments is not None:
            opened = MomentsFile.open(moments)
        else:
            layer_losses = layer_losses or MeasureOptions(
                content,
                min(MEASURED_TOKENS, tokens),
                window,
                losses=out.with_name(out.name + ".losses.jsonl"),
                replace=True,
                device=device,
            )
            kept = out.with_name(out.name + ".moments.safetensors")
            opened = _fresh_moments(source, model, kept, content, tokens, window, device, progress)
        plan = explore_opened(
            source, spec, model, budget, options, opened, progress, measure=layer_losses
        ).plan
    check_moments(plan, opened)
    if repair is None:
        check_output(source, out, overwrite, job=job_of(plan))
    if dry_run:
        return ConvertResult(plan, out, 0, False, (), ())
    target = out if repair is None else out.with_name(out.name + ".unrepaired")
    with progress("convert", source.nbytes, "bytes") as advance:
        result = convert_checkpoint(
            source,
            spec,
            plan,
            opened,
            target,
            model_card(plan, source.path),
            overwrite=overwrite or repair is not None,
            progress=advance,
        )
    repairs: list[LayerRepair] = []
    if repair is not None:
        job = repair_job(opened_source, Checkpoint.open(target), plan, content, repair, device)
        repairs, _ = run_repair(job, out, overwrite=overwrite, progress=progress)
        shutil.rmtree(target)
    rows: list[EvaluationRow] = []
    if held_out:
        rows = evaluate(model, [str(out)], text=held_out, window=measured, device=device, progress=progress)
        stated = f"{held_out.name}, {rows[0].sample(measured)}"
        write_bytes(
            out / CARD_FILE, model_card(plan, source.path, rows, stated, repaired=bool(repairs)).encode()
        )
    return ConvertResult(plan, out, result.nbytes, bool(result.kept), tuple(repairs), tuple(rows))


def _planned_moments(plan: Plan, given: Path | None) -> MomentsFile:
    assert plan.moments is not None
    path = given or Path(plan.moments.path)
    if not path.is_file():
        raise PlanError(
            f"the plan rests on moments that are not at {path}; give their place with --moments, or calibrate "
            "and plan anew"
        )
    return MomentsFile.open(path)


def _fresh_moments(
    source: Checkpoint,
    name: str,
    kept: Path,
    content: Content,
    tokens: int,
    window: int,
    device: str,
    progress: Reporter,
) -> MomentsFile:
    """Moments of an earlier run where they are the same, else new ones."""
    if kept.is_file():
        found = MomentsFile.open(kept)
        if found.matches(source.fingerprint(), content.sha256, tokens, window):
            return found
    with output_errors(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
    return calibrate_opened(
        source,
        name,
        kept,
        text=content,
        tokens=tokens,
        window=window,
        dtype="float32",
        device=device,
        progress=progress,
    )
