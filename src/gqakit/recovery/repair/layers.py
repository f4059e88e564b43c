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
from gqakit.errors import DataError, UsageError
from gqakit.models.spec import ModelSpec
from gqakit.recovery.repair.blocks import Block, Blocks
from gqakit.recovery.repair.fit import Schedule, fit, relative_error
from gqakit.recovery.repair.store import Store

HELD_OUT = 8
"""One window of so many decides and is not fitted on."""
EXACT = 1e-9
"""A relative error below this is rounding: there is nothing to fit."""
STEP_TOKENS = 512
"""Tokens a step, in whole windows."""


@dataclass(frozen=True)
class RepairOptions:
    """How much to repair.

    Attributes:
        tokens: of text, at most, in whole windows. window: tokens a window.
        steps: of Adam in each layer, 512 tokens each (or one window, where that is more).
        learning_rate: relative to each tensor's root mean square.
        seed: of the order of windows.

    Raises:
        UsageError: for a value out of range.
    """

    tokens: int = 32768
    window: int = 512
    steps: int = 160
    learning_rate: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [f"steps {self.steps}, expected at least 1"] if self.steps < 1 else []
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"learning rate {self.learning_rate}, expected more than 0")
        if self.seed < 0:
            problems.append(f"seed {self.seed}, expected at least 0")
        if problems:
            raise UsageError("repair cannot work with " + "; ".join(problems))

    @property
    def schedule(self) -> Schedule:
        """How each layer is fitted."""
        return Schedule(self.steps, max(1, STEP_TOKENS // self.window), self.learning_rate, self.seed)


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
class Job:
    """What is repaired, and on what.

    Attributes:
        source, converted: the checkpoints. spec: of the source.
        changed: whether the plan changes the layer, for every layer; others are left alone.
        windows: token ids, `[windows, window]`; the last of them are held out.
        options: how. device: "cpu" or "cuda".
    """

    source: Checkpoint
    converted: Checkpoint
    spec: ModelSpec
    changed: tuple[bool, ...]
    windows: Tensor
    options: RepairOptions
    device: str

    @property
    def fitted(self) -> int:
        """How many windows are fitted on."""
        return len(self.windows) - -(-len(self.windows) // HELD_OUT)


def check_windows(windows: Tensor, name: str) -> None:
    """Raise `DataError` unless there is a window to fit on and one to hold out."""
    if len(windows) < 2:
        raise DataError(
            f"repair needs two windows of text, one to fit on and one held out; {name} gives one of "
            f"{windows.shape[1]} tokens: give more text, more --tokens or a smaller --window"
        )


@torch.no_grad()
def repair_layers(job: Job, store: Store, done: int, advance: Callable[[int], None]) -> list[LayerRepair]:
    """Repair every layer, front to back. Tensors and streams are kept in the store, layer by layer.

    Args:
        job: what to do. store: opened for it. done: layers that an earlier run finished.
        advance: called with the number of steps just done, `options.steps` in all for each changed layer.

    Raises:
        GqakitError: when a fit diverges; names layer and step. DataError: when activations are not finite.
        OutputError, CheckpointError: about files.
    """
    blocks = Blocks(job.source, job.spec, job.device), Blocks(job.converted, job.spec, job.device)
    for name, model in zip(("source", "converted"), blocks, strict=True):
        if done:  # the streams are there; only how blocks are called is to be learned
            for _ in model.entering(job.windows[:1]):
                pass
            continue
        stream = store.activations(name, 0)
        for index, hidden in enumerate(model.entering(job.windows)):
            stream.write(index, hidden)
    for layer in range(done):
        advance(job.options.steps if job.changed[layer] else 0)
        store.forget(layer)
    for layer in range(done, job.spec.num_layers):
        _repair_layer(job, store, blocks, layer, advance)
        store.forget(layer)
    return [LayerRepair(**store.finished(layer)[1]) for layer in range(job.spec.num_layers)]


def _repair_layer(
    job: Job, store: Store, blocks: tuple[Blocks, Blocks], layer: int, advance: Callable[[int], None]
) -> None:
    entering = store.activations("converted", layer)
    wanted = store.activations("wanted", layer)
    with blocks[0].block(layer) as theirs, blocks[1].block(layer) as ours:
        partly = _run_source(job, store, theirs, layer)

        def read(window: int) -> tuple[Tensor, Tensor]:
            return entering.read(window).to(job.device), wanted.read(window).to(job.device)

        def stream(hidden: Tensor) -> Tensor:
            return hidden + ours.attend(hidden) if partly else ours.run(hidden)[1]

        def held_out_error() -> float:
            errors = [
                relative_error(stream(hidden), target)
                for hidden, target in map(read, range(job.fitted, len(job.windows)))
            ]
            return float(torch.stack(errors).double().mean())

        before = held_out_error()
        if not math.isfinite(before):
            raise DataError(f"layer {layer}: activations are not finite on this text; is the model sound?")
        repaired, after = False, before
        if job.changed[layer] and before > EXACT:
            kept = {name: parameter.clone() for name, parameter in ours.projections.items()}
            parameters = list(ours.projections.values())
            fit(stream, parameters, read, job.fitted, job.options.schedule, layer, advance)
            for name, parameter in ours.projections.items():  # what counts is what can be written
                parameter.copy_(parameter.to(job.converted.info(name).torch_dtype))
            after = held_out_error()
            repaired = after < before
            if not repaired:
                after = before
                for name, parameter in ours.projections.items():
                    parameter.copy_(kept[name])
        elif job.changed[layer]:
            advance(job.options.steps)
        leaving = store.activations("converted", layer + 1)
        for window in range(len(job.windows)):
            leaving.write(window, ours.run(entering.read(window).to(job.device))[1])
        leaving.sync()
        tensors = {
            name: parameter.detach().to("cpu", job.converted.info(name).torch_dtype).contiguous()
            for name, parameter in ours.projections.items()
            if repaired
        }
        store.finish(layer, tensors, asdict(LayerRepair(repaired, before, after)))


def _run_source(job: Job, store: Store, theirs: Block, layer: int) -> bool:
    """Run the source's block: the stream that is wanted of this layer, and what enters the next.

    Wanted is the stream behind attention where the block has one, and this is returned; else what leaves the block,
    which costs running its MLP as well.
    """
    entering, leaving = store.activations("source", layer), store.activations("source", layer + 1)
    wanted = store.activations("wanted", layer)
    partly = theirs.adds_attention(entering.read(0).to(job.device))
    for window in range(len(job.windows)):
        hidden = entering.read(window).to(job.device)
        added, out = theirs.run(hidden)
        wanted.write(window, hidden + added if partly else out)
        leaving.write(window, out)
    leaving.sync()
    return partly
