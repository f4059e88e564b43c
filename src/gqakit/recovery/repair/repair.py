"""`repair`: a conversion fitted layer by layer to the model it was made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from gqakit.conversion.checks import check_config, check_structure
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE, PLAN_FILE, REPAIR_FILE
from gqakit.conversion.model_card import model_card
from gqakit.data.batches import Content, batches_of
from gqakit.data.options import WINDOW, read_named
from gqakit.data.text import Text
from gqakit.errors import PlanError, UsageError
from gqakit.evaluation.evaluate import evaluate
from gqakit.evaluation.options import TOKENS as EVALUATION_TOKENS
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.running import check_device
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.plan import Plan
from gqakit.progress import Reporter, silent
from gqakit.recovery.repair.layers import Job, LayerRepair, RepairOptions, check_windows, repair_layers
from gqakit.recovery.repair.store import FILES, Store


@dataclass(frozen=True)
class RepairResult:
    """What `repair` did.

    Attributes:
        out: where it went.
        layers: what came of each layer.
        resumed: how many layers an interrupted run had done.
        evaluation: the measured loss of source, conversion and repair; empty where it was not asked for.
    """

    out: Path
    layers: tuple[LayerRepair, ...]
    resumed: int
    evaluation: tuple[EvaluationRow, ...]


def repair(
    converted: str,
    out: Path | None = None,
    *,
    source: str,
    text: object = ("calibration",),
    options: RepairOptions | None = None,
    measure: bool = True,
    evaluate_on: object = ("evaluation",),
    device: str = "auto",
    overwrite: bool = False,
    progress: Reporter = silent,
) -> RepairResult:
    """Fit the converted attention of each layer so that it leaves the stream as the source does; see docs/recovery.md.

    Interrupted, the same call goes on behind the last layer that was done, to the same bytes. What it needs for that lies
    in `OUT.repair` meanwhile.

    Args:
        converted: directory of a conversion; it is not changed.
        out: the new directory; `CONVERTED-repaired` by default.
        source: directory or hub name of the model that it was made of.
        text: a `Text`, or files, or "calibration" for the text that comes with gqakit.
        options: how much.
        measure: then evaluate source, conversion and repair on `evaluate_on` and state it in the model card.
        evaluate_on: files, or "evaluation" for the held-out text that comes with gqakit.
        device: "cpu", "cuda" (untested) or "auto".
        overwrite: replace a checkpoint in `out`, and an unfinished repair with other options.
        progress: see the package.

    Raises:
        PlanError: `converted` is no conversion, or none of this source. UsageError: it was repaired already.
        GqakitError: when a fit diverges; layers before it stay done.
        CheckpointError, FamilyError, DataError, OutputError.
    """
    options = options or RepairOptions()
    target = Checkpoint.open(converted)
    plan = read_plan(target)
    opened = Source.open(source, plan.source.stacks)
    model, spec = opened.checkpoint, opened.spec
    check_conversion(model, spec, target, plan)
    out = target.path.with_name(target.path.name + "-repaired") if out is None else out
    held_out = read_named(evaluate_on, "evaluation") if measure else None
    content = read_named(text, "calibration")
    windows = repair_windows(model, spec, content, options)
    measured = min(options.window, WINDOW)
    if held_out is not None:  # what is wrong with this text is said before the repair, not after it
        batches_of(opened, held_out, window=measured, tokens=EVALUATION_TOKENS)
    check_device(device)
    layers, done = repair_opened(
        model,
        spec,
        target,
        plan,
        out,
        content,
        windows,
        options,
        device=device,
        overwrite=overwrite,
        progress=progress,
    )
    rows: list[EvaluationRow] = []
    if held_out is not None:
        names = [str(target.path), str(out)]
        rows = evaluate(source, names, text=held_out, window=measured, device=device, progress=progress)
        stated = f"{held_out.name}, {rows[0].sample(measured)}"
        card = model_card(plan, model.path, [rows[0], rows[-1]], stated, repaired=True)
        write_bytes(out / CARD_FILE, card.encode())
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


def check_conversion(source: Checkpoint, spec: ModelSpec, converted: Checkpoint, plan: Plan) -> None:
    """Raise `PlanError` unless a conversion is one of this source, and what its plan says."""
    plan.check_source(source.fingerprint(plan.source.fingerprint), str(source.path))
    for check in (
        check_config(Source(str(source.path), source, spec), plan, converted),
        check_structure(Source(str(source.path), source, spec), plan, converted),
    ):
        if not check.passed:
            raise PlanError(f"{converted.path} is not what its plan says: {check.detail}; convert again")


def repair_windows(source: Checkpoint, spec: ModelSpec, content: Content, options: RepairOptions) -> Tensor:
    """The windows to fit and decide on.

    Raises:
        UsageError: the model is none that predicts text. DataError: there are fewer than two windows.
    """
    if spec.family.task != "text" or not isinstance(content, Text):
        raise UsageError(f"repair is for language models; {source.path} is a {spec.family.model_type}")
    batches = batches_of(
        Source(str(source.path), source, spec), content, window=options.window, tokens=options.tokens
    )
    windows = torch.cat([batch["input_ids"] for batch in batches])
    check_windows(windows, content.name)
    return windows


def repair_opened(
    source: Checkpoint,
    spec: ModelSpec,
    converted: Checkpoint,
    plan: Plan,
    out: Path,
    content: Content,
    windows: Tensor,
    options: RepairOptions,
    *,
    device: str,
    overwrite: bool,
    progress: Reporter,
) -> tuple[list[LayerRepair], int]:
    """`repair` for checkpoints that are open already; returns the layers and how many were done before."""
    asked = {
        "gqakit": __version__,
        "source": source.fingerprint(),
        "converted": converted.fingerprint(),
        "text": content.name,
        "text_sha256": content.sha256,
        "tokens_used": windows.numel(),
        **asdict(options),
    }
    check_output(source, out, overwrite)
    check_output(converted, out, overwrite, job={"repair": asked})
    changed = tuple(not grouping.is_identity for grouping in plan.groupings)
    with claimed_directory(out, ".repair", FILES) as work:
        store = Store(work, windows.shape[1], spec.hidden_size)
        done = store.open(asked, overwrite)
        job = Job(source, converted, spec, changed, windows, options, check_device(device))
        with progress("repair", options.steps * sum(changed), "steps") as advance:
            layers = repair_layers(job, store, done, advance)
        record = {**asked, "layers": [asdict(layer) for layer in layers]}
        extra: dict[str, bytes] = {
            PLAN_FILE: (converted.path / PLAN_FILE).read_bytes(),
            CARD_FILE: model_card(plan, source.path, repaired=True).encode(),
            REPAIR_FILE: (json.dumps(record, indent=2) + "\n").encode(),
        }
        with progress("write", converted.nbytes, "bytes") as advance:
            write_checkpoint(
                converted,
                out,
                WriteJob(
                    replaced=_replacements(converted, store, layers),
                    config=converted.config,
                    decides={"repair": asked},
                    extra_files=extra,
                    checksum_file=CHECKSUM_FILE,
                ),
                overwrite=overwrite,
                progress=advance,
            )
    return layers, done


def _replacements(
    converted: Checkpoint, store: Store, layers: Sequence[LayerRepair]
) -> dict[str, Replacement]:
    """The fitted tensors, read from the store when their bytes are due."""

    def produce(layer: int, name: str) -> Any:
        return lambda: store.finished(layer)[0][name]

    return {
        name: Replacement(converted.info(name).shape, None, produce(layer, name))
        for layer in range(len(layers))
        for name in store.finished(layer)[0]
    }
