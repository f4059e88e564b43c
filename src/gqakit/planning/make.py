"""`plan`: a budget in, a Plan out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.budget import Budget, resolve_budget
from gqakit.data.batches import DataSource, batches_of, read_source
from gqakit.data.samples import positions_of
from gqakit.errors import BudgetError
from gqakit.models.inspection import open_model
from gqakit.models.running import check_device
from gqakit.models.spec import ModelSpec
from gqakit.planning import planner
from gqakit.planning.layer_loss.file import LossFile, LossHeader, measured_on
from gqakit.planning.layer_loss.measure import Bench, measure_losses
from gqakit.planning.options import PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Measure, Planned
from gqakit.progress import Reporter, silent

MEASURED_TOKENS = 1536


@dataclass(frozen=True)
class BudgetOptions:
    """The spellings of a budget, exactly one of them given; see `gqakit.core.budget.resolve_budget`."""

    kv_ratio: float | None = None
    kv_heads: int | None = None
    kv_bytes_per_token: int | None = None
    kv_gib: float | None = None
    context: int | None = None
    batch: int | None = None

    def resolve(self, spec: ModelSpec) -> Budget:
        """The budget for a model.

        Raises:
            BudgetError: when it is none, several, out of range, or less than one KV head a layer.
        """
        try:
            budget = resolve_budget(spec.cache, **asdict(self))
        except ValueError as error:
            raise BudgetError(str(error)) from error
        least = replace(spec.cache, key_heads=(1,) * spec.num_layers, value_heads=(1,) * spec.num_layers)
        smallest = least.ratio_to(spec.cache)
        if budget.kv_ratio < smallest * (1 - 1e-6):
            raise BudgetError(
                f"{budget.asked} is a kv_ratio of {budget.kv_ratio:.4g}; the smallest that can be met is "
                f"{smallest:.4f}, {least.bytes_per_token} bytes per token (one KV head a layer)"
            )
        return budget


@dataclass(frozen=True)
class MeasureOptions:
    """How the loss of converting one layer alone is measured.

    Attributes:
        text: text files, "calibration" for the text that comes with gqakit, or a `Text`, `Images` or `Speech`.
        tokens, window: of text at most so many tokens, in whole windows.
        losses: file in which every loss is kept as soon as it is known; a second run goes on from it.
        replace: begin that file anew where it is about another model, text, rule or moments, instead of refusing it.
        workers: processes that share the layers, each with the model in memory.
        device: "cpu", "cuda" or "auto".
    """

    text: DataSource = ("calibration",)
    tokens: int = MEASURED_TOKENS
    window: int = 512
    losses: Path | None = None
    replace: bool = False
    workers: int = 1
    device: str = "auto"

    def on(
        self, source: Checkpoint, spec: ModelSpec, moments: MomentsFile | None, merge: str, progress: Reporter
    ) -> Measure:
        """The measurement for a model. The text is read at once, so that what is wrong with it is said early.

        Raises:
            DataError: about the text. CheckpointError: the model has no tokenizer. UsageError: no such device.
        """
        bench, losses = self.prepare(source, spec, moments, merge)
        return lambda choices: measure_losses(bench, choices, losses(), self.workers, progress)

    def prepare(
        self, source: Checkpoint, spec: ModelSpec, moments: MomentsFile | None, merge: str
    ) -> tuple[Bench, Callable[[], LossFile]]:
        """What it takes to measure, and what opens the file of losses. See `on`."""
        content = read_source(self.text)
        batches = batches_of(source, spec, content, window=self.window, tokens=self.tokens)
        device = check_device(self.device)
        threads = max(1, torch.get_num_threads() // self.workers) if self.workers > 1 else 0
        path = None if moments is None else moments.path
        bench = Bench(source.path, path, merge, batches, spec.stacks, device, threads)
        header = LossHeader(
            source=source.fingerprint(measured_on(self.losses)),
            stacks=spec.stacks_to_tell,
            moments=None if moments is None else moments.fingerprint,
            merge=merge,
            text_sha256=content.sha256,
            windows=len(batches),
            window=positions_of(batches[0]),
        )
        return bench, lambda: LossFile.open(header, self.losses, replace=self.replace)


def plan(
    model: str,
    budget: BudgetOptions,
    options: PlanOptions | None = None,
    *,
    moments: Path | None = None,
    measure: MeasureOptions | None = None,
    progress: Reporter = silent,
) -> Plan:
    """Decide which heads share and how, within a budget. Without moments the weights alone decide.

    Reads headers and one layer's attention tensors at a time; with `measure` it runs the model too, where the
    allocation weighs measured losses.

    Args:
        model: directory or hub name.
        budget, options: see there.
        moments: a moments file.
        measure: how to measure; None does not run the model, and the merge rule's own error stands in.
        progress: see the package.

    Raises:
        BudgetError, PlanError, UsageError, CheckpointError, FamilyError, DataError.
    """
    return explore(model, budget, options, moments=moments, measure=measure, progress=progress).plan


def explore(
    model: str,
    budget: BudgetOptions,
    options: PlanOptions | None = None,
    *,
    moments: Path | None = None,
    measure: MeasureOptions | None = None,
    whole_front: bool = False,
    progress: Reporter = silent,
) -> Planned:
    """`plan`, together with what it was picked from: every slot's choices and the allocation's front.

    Args:
        whole_front: look at every number of heads, even where the budget alone decides.
    """
    options = options or PlanOptions()
    source, spec = open_model(model, options.stacks)
    opened = MomentsFile.open(moments) if moments else None
    return explore_opened(
        source,
        spec,
        model,
        budget,
        options,
        opened,
        progress,
        measure=measure,
        whole_front=whole_front,
    )


def explore_opened(
    source: Checkpoint,
    spec: ModelSpec,
    name: str,
    budget: BudgetOptions,
    options: PlanOptions,
    moments: MomentsFile | None,
    progress: Reporter,
    *,
    measure: MeasureOptions | None = None,
    whole_front: bool = False,
) -> Planned:
    """`explore` for a checkpoint that is open already."""
    options.check_engine(spec.family.model_type)
    resolved = budget.resolve(spec)
    allocation = options.allocation_for(resolved, measure is not None)
    measured = None
    if measure is not None and options.loss_for(allocation, measurable=True) == "measured":
        measured = measure.on(source, spec, moments, options.merge, progress)
    with progress("plan", spec.num_layers, "layers") as advance:
        return planner.explore(
            source,
            spec,
            resolved,
            options,
            moments,
            name=Path(name).name,
            progress=lambda: advance(1),
            measure=measured,
            whole_front=whole_front,
        )
