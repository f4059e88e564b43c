"""Local repair: block by block, a converted attention is fitted to put the residual stream back where the source has it.

Two streams run through the model side by side, the source's and the converted one's, which the blocks before have
already repaired. In each block that the conversion changed, q, k, v and o are fitted so that the converted stream
behind attention is the *source's*: what earlier blocks got wrong is corrected as far as this one can. A block with
several attentions (a decoder's own and the one to its encoder) is fitted as a whole. Nothing runs end to end; memory is
two blocks, the hidden states around one block lie on disk.

A block changes only if that lowers the error on windows that were not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.core.cache_types import CachePair
from gqakit.data.batches import Content
from gqakit.data.samples import Batch
from gqakit.errors import DataError
from gqakit.models.blockwise.states import States
from gqakit.models.blockwise.stream import entering_key
from gqakit.models.processes import ALONE, Processes
from gqakit.models.source import Source
from gqakit.models.spec import Site
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
    """What came of the attention of one block.

    Attributes:
        repaired: whether its weights changed.
        error_before, error_after: on held-out windows, `E ‖ŝ − s‖² / ‖s‖²` of the residual stream behind attention, or
            behind the block; see `_Layer.run_source`.
    """

    repaired: bool
    error_before: float
    error_after: float


@dataclass(frozen=True)
class RepairJob:
    """What is repaired, and on what.

    Attributes:
        source: the model that `converted` was made of, with the stacks of the plan. plan: how.
        content: text, images or recordings. batches: windows of it; the last of them are held out.
        options: how much. stacks: the kinds of layers that are fitted; none given are all that were converted.
        device: torch's name of it. dtype: that products are computed in.
        processes: that share the windows, and the directory of the repair.
        types: of the cache that the converted model's keys and values go through; None rounds nothing.
    """

    source: Source
    converted: Checkpoint
    plan: Plan
    content: Content
    batches: Sequence[Batch]
    options: FitOptions
    stacks: tuple[str, ...]
    device: str
    dtype: torch.dtype = torch.float32
    processes: Processes = ALONE
    types: CachePair | None = None

    def mine(self, first: int, end: int) -> list[int]:
        """This process's share of the windows from one to another."""
        return self.processes.mine(range(first, end))

    @property
    def all(self) -> list[int]:
        """This process's share of all windows."""
        return self.mine(0, len(self.batches))

    @cached_property
    def changed(self) -> frozenset[Site]:
        """The attention layers that are fitted: of these stacks those that plan or cache change. Others are left alone."""
        sites = zip(self.source.spec.sites, self.plan.groupings, strict=True)
        return frozenset(
            site
            for site, grouping in sites
            if (self.types is not None or not grouping.is_identity)
            and (not self.stacks or site.stack.name in self.stacks)
        )

    @property
    def fitted(self) -> int:
        """Number of windows that are fitted on."""
        return len(self.batches) - -(-len(self.batches) // HELD_OUT)

    def schedule(self, positions: int, error: float) -> FitSchedule:
        """How a block is fitted, whose windows have that number of positions, from a relative squared error.

        The weights are about the root of the error away from good ones, and steps are as large.
        """
        options = self.options
        batch = max(1, STEP_TOKENS // positions)
        return FitSchedule(options.steps, batch, options.learning_rate * math.sqrt(error), options.seed)


@torch.no_grad()
def repair_layers(
    job: RepairJob, store: RepairStore, done: int, advance: Callable[[int], None]
) -> list[LayerRepair]:
    """Repair every block, front to back. Tensors and hidden states are kept in the store, block by block.

    Args:
        job: what to do. store: opened for it. done: blocks that an earlier run finished: they run as it left them.
        advance: called with the number of steps just done, `options.steps` in all for each block that is fitted.

    Raises:
        GqakitError: when a fit diverges; names block and step. DataError: when activations are not finite.
        OutputError, CheckpointError: about files. NotByBlocks: see `Blocks.entering`.
    """
    spec, run = job.source.with_all_stacks().spec, (job.device, job.dtype)
    theirs = RepairBlocks(job.source.checkpoint, spec, *run, None, store.states("source"))
    ours = RepairBlocks(job.converted, spec, *run, job.types, store.states("converted"))
    for number, stage in enumerate(theirs.stages):
        for model in (theirs, ours):
            for window, hidden in model.entering(number, dict(enumerate(job.batches))):
                if window in job.all:
                    model.states.put(entering_key(stage.first, window), hidden.float())
        job.processes.wait()
        for index in range(stage.first, stage.first + len(stage.blocks)):
            fitted = [layer for layer in theirs.layers_of(index) if spec.sites[layer] in job.changed]
            with theirs.block(index, fitted) as their, ours.block(index, fitted) as our:
                layer = _Layer(job, store, theirs, ours, their, our, index)
                _run_again(layer, advance) if index < done else _repair_layer(layer, advance)
            job.processes.wait()  # until nobody reads them
            for window in job.all:
                layer.forget(window)
    blocks = sum(len(stage.blocks) for stage in theirs.stages)
    return [LayerRepair(**store.finished(block)[1]) for block in range(blocks)]


def _run_again(layer: _Layer, advance: Callable[[int], None]) -> None:
    """Run a block that an earlier run finished."""
    for name, tensor in layer.store.finished(layer.index)[0].items():
        layer.our.projections[name].copy_(tensor)
    advance(layer.job.options.steps if layer.our.projections else 0)
    layer.run_source()
    layer.run_converted()


def _repair_layer(layer: _Layer, advance: Callable[[int], None]) -> None:
    """Fit one block if that helps, run it, keep what leaves it and its tensors."""
    job, projections = layer.job, layer.our.projections
    partly = layer.run_source()
    fitting = layer.fitting(partly)

    def held_out_error() -> float:
        total = torch.zeros((), dtype=torch.float64)
        for window in job.mine(job.fitted, len(job.batches)):
            hidden, wanted = fitting.read(window)
            total += float(relative_error(fitting.stream(hidden, window), wanted))
        job.processes.add_up(total)
        return float(total) / (len(job.batches) - job.fitted)

    before = held_out_error()
    if not math.isfinite(before):
        raise DataError(f"layer {layer.index}: activations are not finite on this text; is the model sound?")
    repaired, after = False, before
    if projections and before > EXACT:
        kept = {name: parameter.clone() for name, parameter in projections.items()}
        fit(fitting, job.schedule(layer.positions, before), advance, job.processes)
        for name, parameter in projections.items():  # what counts is what can be written
            parameter.copy_(parameter.to(job.converted.info(name).torch_dtype))
        after = held_out_error()
        repaired = after < before
        if not repaired:
            after = before
            for name, parameter in projections.items():
                parameter.copy_(kept[name])
    elif projections:
        advance(job.options.steps)
    layer.run_converted()
    tensors = {
        name: parameter.detach().to("cpu", job.converted.info(name).torch_dtype).contiguous()
        for name, parameter in projections.items()
        if repaired
    }
    if job.processes.is_first:
        layer.store.finish(layer.index, tensors, asdict(LayerRepair(repaired, before, after)))
    job.processes.wait()


@dataclass(frozen=True)
class _Layer:
    """One block of both models, with the hidden states around it."""

    job: RepairJob
    store: RepairStore
    theirs: RepairBlocks
    ours: RepairBlocks
    their: RepairBlock
    our: RepairBlock
    index: int

    @cached_property
    def wanted(self) -> States:
        """The stream that the converted block is fitted to, by what enters."""
        return self.store.states("wanted")

    @property
    def positions(self) -> int:
        """Of the first window."""
        return self.theirs.states.get(self._key(0))[..., 0].numel()

    def _key(self, window: int) -> str:
        return entering_key(self.index, window)

    def run_source(self) -> bool:
        """Run the source's block: the stream that is wanted of this one, and what enters the next.

        Wanted is the stream behind attention where the block has one that adds to it, and this is returned; else what
        leaves the block, which costs running its MLP as well.
        """
        states, device, partly = self.theirs.states, self.job.device, False
        for number, window in enumerate(self.job.all):
            hidden = states.get(self._key(window)).to(device)
            partly = self.their.adds_attention(hidden, window) if number == 0 else partly
            added, out = self.their.run(hidden, window)
            self.wanted.put(self._key(window), hidden + added if partly and added is not None else out)
            self.theirs.leave(self.index, window, out)
        return any(self.job.processes.every(partly))

    def fitting(self, partly: bool) -> LayerFit:
        """The fit of this block; `partly` as `run_source` says."""
        our, device = self.our, self.job.device

        def read(window: int) -> tuple[Tensor, Tensor]:
            both = self.ours.states.get(self._key(window)), self.wanted.get(self._key(window))
            return both[0].to(device), both[1].to(device)

        def stream(hidden: Tensor, window: int) -> Tensor:
            return hidden + our.attend(hidden, window) if partly else our.run(hidden, window)[1]

        return LayerFit(self.index, list(our.projections.values()), stream, read, self.job.fitted)

    def run_converted(self) -> None:
        """Run the converted block as it is now: what enters the next."""
        for window in self.job.all:
            hidden = self.ours.states.get(self._key(window)).to(self.job.device)
            self.ours.leave(self.index, window, self.our.run(hidden, window)[1])
        self.job.processes.wait()  # until all have kept what enters the next block

    def forget(self, window: int) -> None:
        """Remove what entered."""
        for states in (self.theirs.states, self.ours.states, self.wanted):
            states.drop(self._key(window))
