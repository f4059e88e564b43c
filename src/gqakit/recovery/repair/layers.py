"""Local repair: layer by layer, a converted attention is fitted to put the residual stream back where the source has it.

Two streams run through the model side by side, the source's and the converted one's, which the layers before have
already repaired. In each layer that the conversion changed, q, k, v and o are fitted so that the converted stream
behind attention is the *source's*: what earlier layers got wrong is corrected as far as this one can. Nothing
runs end to end; memory is two blocks, the activations of one layer lie on disk.

A layer changes only if that lowers the error on windows that were not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.core.cache_types import CachePair
from gqakit.data.text import Text
from gqakit.errors import DataError
from gqakit.models.processes import ALONE, Processes
from gqakit.models.source import Source
from gqakit.planning.plan import Plan
from gqakit.recovery.repair.blocks import RepairBlock, RepairBlocks
from gqakit.recovery.repair.fit import FitSchedule, LayerFit, fit, relative_error
from gqakit.recovery.repair.options import FitOptions
from gqakit.recovery.repair.store import RepairStore

HELD_OUT = 8
"""One window in this many decides and is not fitted on."""
EXACT = 1e-9
"""A relative error below this is rounding: there is nothing to fit."""
STEP_TOKENS = 512
"""Tokens per step, in whole windows."""


@dataclass(frozen=True)
class LayerRepair:
    """What came of one layer.

    Attributes:
        repaired: whether its weights changed.
        error_before, error_after: on held-out windows, `E ‖ŝ − s‖² / ‖s‖²` of the residual stream behind attention.
    """

    repaired: bool
    error_before: float
    error_after: float


@dataclass(frozen=True)
class RepairJob:
    """What is repaired, and on what.

    Attributes:
        source: the model that `converted` was made of. plan: how.
        content: the text. windows: its token ids, `[windows, window]`; the last of them are held out.
        options: how much. device: torch's name of it. dtype: that products are computed in.
        processes: that share the windows, and the directory of the repair.
        types: of the cache that the converted model's keys and values go through; None rounds nothing.
    """

    source: Source
    converted: Checkpoint
    plan: Plan
    content: Text
    windows: Tensor
    options: FitOptions
    device: str
    dtype: torch.dtype = torch.float32
    processes: Processes = ALONE
    types: CachePair | None = None

    def mine(self, first: int, end: int) -> list[int]:
        """This process's share of the windows from one to another."""
        return self.processes.mine(range(first, end))

    @property
    def changed(self) -> tuple[bool, ...]:
        """Whether plan or cache change the layer, for every layer; others are left alone."""
        return tuple(self.types is not None or not grouping.is_identity for grouping in self.plan.groupings)

    @property
    def fitted(self) -> int:
        """Number of windows that are fitted on."""
        return len(self.windows) - -(-len(self.windows) // HELD_OUT)

    def schedule(self, error: float) -> FitSchedule:
        """How a layer is fitted that has a relative squared error: its weights are about its root away from good ones."""
        options = self.options
        batch = max(1, STEP_TOKENS // options.window)
        return FitSchedule(options.steps, batch, options.learning_rate * math.sqrt(error), options.seed)


@torch.no_grad()
def repair_layers(
    job: RepairJob, store: RepairStore, done: int, advance: Callable[[int], None]
) -> list[LayerRepair]:
    """Repair every layer, front to back. Tensors and streams are kept in the store, layer by layer.

    Args:
        job: what to do. store: opened for it. done: layers that an earlier run finished.
        advance: called with the number of steps just done, `options.steps` in all for each changed layer.

    Raises:
        GqakitError: when a fit diverges; names layer and step. DataError: when activations are not finite.
        OutputError, CheckpointError: about files.
    """
    spec = job.source.spec
    blocks = (
        RepairBlocks(job.source.checkpoint, spec, job.device, job.dtype),
        RepairBlocks(job.converted, spec, job.device, job.dtype, job.types),
    )
    windows = job.mine(0, len(job.windows))
    for name, model in zip(("source", "converted"), blocks, strict=True):
        if done or not windows:  # the streams are there; only how blocks are called is to be learned
            for _ in model.entering(job.windows[:1]):
                pass
            continue
        stream = store.activations(name, 0)
        for index, hidden in zip(windows, model.entering(job.windows[windows]), strict=True):
            stream.write(index, hidden)
    job.processes.wait()
    for layer in range(done):
        advance(job.options.steps if job.changed[layer] else 0)
        _forget(job, store, layer)
    for layer in range(done, spec.num_layers):
        with blocks[0].block(layer) as theirs, blocks[1].block(layer) as ours:
            _repair_layer(_Layer(job, store, theirs, ours, layer), advance)
        _forget(job, store, layer)
    return [LayerRepair(**store.finished(layer)[1]) for layer in range(spec.num_layers)]


def _forget(job: RepairJob, store: RepairStore, layer: int) -> None:
    job.processes.wait()  # until nobody reads them
    if job.processes.is_first:
        store.forget(layer)


def _repair_layer(layer: _Layer, advance: Callable[[int], None]) -> None:
    """Fit one layer if that helps, run it, keep what leaves it and its tensors."""
    job, ours = layer.job, layer.ours
    partly = layer.run_source()
    fitting = layer.fitting(partly)

    def held_out_error() -> float:
        total = torch.zeros((), dtype=torch.float64)
        for hidden, wanted in map(fitting.read, job.mine(job.fitted, len(job.windows))):
            total += float(relative_error(fitting.stream(hidden), wanted))
        job.processes.add_up(total)
        return float(total) / (len(job.windows) - job.fitted)

    before = held_out_error()
    if not math.isfinite(before):
        raise DataError(f"layer {layer.index}: activations are not finite on this text; is the model sound?")
    repaired, after = False, before
    if job.changed[layer.index] and before > EXACT:
        kept = {name: parameter.clone() for name, parameter in ours.projections.items()}
        fit(fitting, job.schedule(before), advance, job.processes)
        for name, parameter in ours.projections.items():  # what counts is what can be written
            parameter.copy_(parameter.to(job.converted.info(name).torch_dtype))
        after = held_out_error()
        repaired = after < before
        if not repaired:
            after = before
            for name, parameter in ours.projections.items():
                parameter.copy_(kept[name])
    elif job.changed[layer.index]:
        advance(job.options.steps)
    layer.run_converted()
    tensors = {
        name: parameter.detach().to("cpu", job.converted.info(name).torch_dtype).contiguous()
        for name, parameter in ours.projections.items()
        if repaired
    }
    job.processes.wait()  # until all have kept what enters the next layer
    if job.processes.is_first:
        layer.store.finish(layer.index, tensors, asdict(LayerRepair(repaired, before, after)))
    job.processes.wait()


@dataclass(frozen=True)
class _Layer:
    """One layer of both models, with the files of the streams around it."""

    job: RepairJob
    store: RepairStore
    theirs: RepairBlock
    ours: RepairBlock
    index: int

    def run_source(self) -> bool:
        """Run the source's block: the stream that is wanted of this layer, and what enters the next.

        Wanted is the stream behind attention where the block has one, and this is returned; else what leaves the block,
        which costs running its MLP as well.
        """
        store, device = self.store, self.job.device
        entering, leaving = (
            store.activations("source", self.index),
            store.activations("source", self.index + 1),
        )
        wanted = store.activations("wanted", self.index)
        partly = self.theirs.adds_attention(entering.read(0).to(device))
        for window in self.job.mine(0, len(self.job.windows)):
            hidden = entering.read(window).to(device)
            added, out = self.theirs.run(hidden)
            wanted.write(window, hidden + added if partly else out)
            leaving.write(window, out)
        self.job.processes.wait()
        leaving.sync()
        return partly

    def fitting(self, partly: bool) -> LayerFit:
        """The fit of this layer; `partly` as `run_source` says."""
        entering = self.store.activations("converted", self.index)
        wanted = self.store.activations("wanted", self.index)
        ours, device = self.ours, self.job.device

        def read(window: int) -> tuple[Tensor, Tensor]:
            return entering.read(window).to(device), wanted.read(window).to(device)

        def stream(hidden: Tensor) -> Tensor:
            return hidden + ours.attend(hidden) if partly else ours.run(hidden)[1]

        return LayerFit(self.index, list(ours.projections.values()), stream, read, self.job.fitted)

    def run_converted(self) -> None:
        """Run the converted block as it is now: what enters the next."""
        entering = self.store.activations("converted", self.index)
        leaving = self.store.activations("converted", self.index + 1)
        for window in self.job.mine(0, len(self.job.windows)):
            leaving.write(window, self.ours.run(entering.read(window).to(self.job.device))[1])
        self.job.processes.wait()
        leaving.sync()
