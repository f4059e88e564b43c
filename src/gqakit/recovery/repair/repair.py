"""`repair`: a conversion fitted layer by layer to the model it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gqakit import __version__
from gqakit.checkpoint import (
    Checkpoint,
    Replacement,
    WriteJob,
    check_output,
    claimed_directory,
    write_bytes,
    write_checkpoint,
)
from gqakit.checkpoint.upload import check_upload, upload
from gqakit.conversion.checks import check_config, check_structure
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE, PLAN_FILE, REPAIR_FILE
from gqakit.conversion.model_card import model_card
from gqakit.conversion.report import write_report
from gqakit.data.batches import IMAGES_AT_ONCE, Content, batches_of
from gqakit.data.options import WINDOW, read_named
from gqakit.data.samples import positions_of
from gqakit.data.text import Text
from gqakit.errors import DataError, PlanError, UsageError, unknown_name
from gqakit.evaluation.evaluate import evaluate_sources
from gqakit.evaluation.options import EvaluateOptions
from gqakit.evaluation.page.charts import altair
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.blockwise.blocks import RUN_WHOLE
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.processes import Processes
from gqakit.models.rounding import check_cache_types
from gqakit.models.run_options import MemoryOptions, RunOptions
from gqakit.models.running import check_device, precision_of
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.planning.plan import Plan
from gqakit.progress import Reporter, silent
from gqakit.recovery.repair.layers import LayerRepair, RepairJob, repair_layers
from gqakit.recovery.repair.options import FitOptions, RepairOptions
from gqakit.recovery.repair.store import FILES, RepairStore


@dataclass(frozen=True)
class RepairResult:
    """What `repair` did.

    Attributes:
        out: where it went.
        layers: what came of each layer.
        resumed: number of layers that an interrupted run had done.
        evaluation: the measured loss of source, conversion and repair; empty where it was not asked for.
    """

    out: Path
    layers: tuple[LayerRepair, ...]
    resumed: int
    evaluation: tuple[EvaluationRow, ...]


SUFFIX = ".repair"
"""A repair is kept in `OUT.repair` while it is not finished."""


@takes(RepairOptions)
def repair(
    converted: str | Path,
    out: str | Path | None = None,
    *,
    options: RepairOptions,
    progress: Reporter = silent,
) -> RepairResult:
    """Fit the converted attention of each layer so that it leaves the stream as the source does; see docs/recovery.md.

    Interrupted, the same call continues behind the last layer that was done, to the same bytes. What it needs for that lies
    in `OUT.repair` meanwhile. Under `torchrun` or `accelerate launch` every process calls this, with an `out` that all see.

    Args:
        converted: directory of a conversion; it is not changed.
        out: the new directory; `CONVERTED-repaired` by default.
        options: see `RepairOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        PlanError: `converted` is no conversion, or none of this source. UsageError: it was repaired already, or the model
            cannot be run block by block.
        GqakitError: when a fit diverges; layers before it stay done.
        GqakitError: one of CheckpointError, FamilyError, DataError, OutputError.
    """
    target = Checkpoint.open(str(converted))
    plan = read_plan(target)
    source = Source.open(str(options.source), plan.source.stacks)
    check_conversion(source, target, plan)
    out = target.path.with_name(target.path.name + "-repaired") if out is None else Path(out)
    if options.push_to_hub:
        check_upload(options.push_to_hub)
    if options.report is not None:
        altair()
    measured = options.evaluate and (source.spec.family.data == "text" or options.evaluate_text is not None)
    held_out = read_named(options.evaluate_text, "evaluation") if measured else None
    job = repair_job(source, target, plan, options.read(), options, options, options.stacks)
    running = asdict(options.part(MemoryOptions))
    types = _types(plan, options)
    scoring = EvaluateOptions(window=min(options.window, WINDOW), **running, kv_cache=types)
    if held_out is not None:  # what is wrong with this text is said before the repair, not after it
        batches_of(source, held_out, window=scoring.window, tokens=scoring.tokens)
    layers, done = run_repair(job, out, overwrite=options.overwrite, progress=progress)
    rows: list[EvaluationRow] = []
    if held_out is not None:
        conversions = [Source.open(target.path), Source.open(out)]
        rows = evaluate_sources(source, conversions, held_out, scoring, progress)
        stated = f"{held_out.name}, {rows[0].sample(scoring.window)}"
        card = model_card(plan, source.path, [rows[0], rows[-1]], stated, repaired=True)
        if job.processes.is_first:
            write_bytes(out / CARD_FILE, card.encode())
            if options.report is not None:
                words = options.words(without=("overwrite", "push_to_hub", "report"))
                command = ["gqakit", "repair", converted, *words, "-o", out]
                write_report(options.report, source, None, rows, plan, stated, command)
        job.processes.wait()
    if options.push_to_hub and job.processes.is_first:
        upload(out, options.push_to_hub)
    return RepairResult(out, tuple(layers), done, tuple(rows))


def read_plan(converted: Checkpoint) -> Plan:
    """The plan of a conversion.

    Raises:
        PlanError: it is none. UsageError: it was repaired already.
    """
    path = converted.path / PLAN_FILE
    if not path.is_file():
        raise PlanError(
            f"{converted.path} has no {PLAN_FILE}: it is no conversion; `gqakit convert` makes one"
        )
    if (converted.path / REPAIR_FILE).is_file():
        raise UsageError(f"{converted.path} was repaired already; repair the conversion that it was made of")
    return Plan.load(path)


def check_conversion(source: Source, converted: Checkpoint, plan: Plan) -> None:
    """Raise `PlanError` unless a conversion is one of this source, and what its plan says."""
    plan.check_source(source.fingerprint_like(plan.source.fingerprint), str(source.path))
    for check in (
        check_config(source, plan, converted),
        check_structure(source, plan, converted),
    ):
        if not check.passed:
            raise PlanError(f"{converted.path} is not what its plan says: {check.detail}; convert again")


def repair_windows(source: Source, content: Content, options: FitOptions) -> list[dict[str, Any]]:
    """The windows to fit and decide on: pieces of text, recordings, some images at a time.

    Raises:
        UsageError: the model cannot be run block by block, or takes other data. DataError: there are fewer than two.
    """
    family = source.spec.family
    if reason := RUN_WHOLE.get(family.model_type):
        raise UsageError(_not_by_blocks(source, reason))
    if family.task != "text":  # what a block is called with differs from window to window
        Processes.of_launch().alone(f"repair of a {family.model_type}")
    batches = batches_of(source, content, window=options.window, tokens=options.tokens)
    if len(batches) < 2:
        more = (
            "more text, more `tokens` or a smaller `window`" if isinstance(content, Text) else "more of them"
        )
        raise DataError(
            f"repair needs two windows of text, two recordings or more than {IMAGES_AT_ONCE} images, to fit on and to hold "
            f"out; {content.name} gives one: give {more}"
        )
    return batches


def _not_by_blocks(source: Source, reason: object) -> str:
    return f"repair goes block by block, and {source.path} cannot be run so: {reason}"


def repair_job(
    source: Source,
    converted: Checkpoint,
    plan: Plan,
    content: Content,
    options: FitOptions,
    how: RunOptions,
    stacks: tuple[str, ...] = (),
) -> RepairJob:
    """What is repaired, with the data cut into windows; see `repair_windows` for what is raised.

    Raises:
        UsageError: one of `stacks` was not converted.
    """
    for name in stacks:
        if name not in source.spec.stacks:
            raise unknown_name("kind of attention layers that was converted", name, source.spec.stacks)
    windows = repair_windows(source, content, options)
    fit_options = options.part(FitOptions)
    processes = Processes.of_launch()
    device = check_device(processes.device(how.device))
    dtype = precision_of(source.checkpoint, how.precision, device)
    types = check_cache_types(_types(plan, fit_options), source.spec)
    where = (device, dtype, processes)
    return RepairJob(source, converted, plan, content, windows, fit_options, stacks, *where, types)


def _types(plan: Plan, options: FitOptions) -> str | None:
    """The types of the cache that is repaired for: those asked for, else the plan's."""
    return options.kv_cache or (None if plan.cache is None else plan.cache.types)


def run_repair(
    job: RepairJob, out: Path, *, overwrite: bool, progress: Reporter
) -> tuple[list[LayerRepair], int]:
    """`repair` for what is open already.

    Args:
        job: what to do. out: the new directory. overwrite: see `RepairOptions`. progress: gets steps and bytes.

    Returns:
        What came of each layer, and the number of layers that an interrupted run had done.

    Raises:
        See `repair`.
    """
    source, converted, processes = job.source, job.converted, job.processes
    asked = {
        "gqakit": __version__,
        "source": source.fingerprint,
        "converted": converted.fingerprint(),
        "text": job.content.name,
        "text_sha256": job.content.sha256,
        "tokens_used": sum(map(positions_of, job.batches)),
        **{name: value for name, value in asdict(job.options).items() if value is not None},
        **({"stacks": list(job.stacks)} if job.stacks else {}),
        **({} if job.dtype == torch.float32 else {"dtype": str(job.dtype).removeprefix("torch.")}),
    }
    processes.agree(asked)
    check_output(source.checkpoint, out, overwrite)
    check_output(converted, out, overwrite, job={"repair": asked})
    processes.wait()  # until all have looked
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(claimed_directory(out, SUFFIX, FILES))
        work = out.with_name(out.name + SUFFIX)
        store = RepairStore(work)
        done = processes.every(store.open(asked, overwrite) if processes.is_first else 0)[0]
        reporter = progress if processes.is_first else silent
        blocks = {site.stack.block.format(layer=site.index) for site in job.changed}
        with reporter("repair", job.options.steps * len(blocks), "steps") as advance:
            try:
                layers = repair_layers(job, store, done, advance)
            except NotByBlocks as error:
                raise UsageError(_not_by_blocks(source, error)) from error
        if processes.is_first:
            _write(job, out, asked, layers, store, overwrite=overwrite, progress=progress)
        processes.wait()
    return layers, done


def _write(
    job: RepairJob,
    out: Path,
    asked: Mapping[str, Any],
    layers: Sequence[LayerRepair],
    store: RepairStore,
    *,
    overwrite: bool,
    progress: Reporter,
) -> None:
    """The repaired checkpoint."""
    converted = job.converted
    record = {**asked, "layers": [asdict(layer) for layer in layers]}
    extra: dict[str, bytes] = {
        PLAN_FILE: (converted.path / PLAN_FILE).read_bytes(),
        CARD_FILE: model_card(job.plan, job.source.path, repaired=True).encode(),
        REPAIR_FILE: (json.dumps(record, indent=2) + "\n").encode(),
    }
    write = WriteJob(
        replaced=_replacements(converted, store, layers),
        config=converted.config,
        decides={"repair": dict(asked)},
        extra_files=extra,
        checksum_file=CHECKSUM_FILE,
    )
    with progress("write", converted.nbytes, "bytes") as advance:
        write_checkpoint(converted, out, write, overwrite=overwrite, progress=advance)


def _replacements(
    converted: Checkpoint, store: RepairStore, layers: Sequence[LayerRepair]
) -> dict[str, Replacement]:
    """The fitted tensors, read from the store when their bytes are due."""

    def produce(layer: int, name: str) -> Any:
        return lambda: store.finished(layer)[0][name]

    return {
        name: Replacement(converted.info(name).shape, None, produce(layer, name))
        for layer in range(len(layers))
        for name in store.finished(layer)[0]
    }
