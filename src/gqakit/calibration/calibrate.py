"""`calibrate`: text, images or speech in, the statistics file that every method works from out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gqakit.calibration.backward import NoGradientError, collect_gradients
from gqakit.calibration.backward_by_block import collect_gradients_by_block
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.in_sequence import MATRICES, collect_in_sequence
from gqakit.calibration.options import CalibrateOptions
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, writing_statistics
from gqakit.core.gradients import LayerGradients
from gqakit.core.statistics import LayerStatistics
from gqakit.data.batches import Content, batches_of
from gqakit.data.samples import Batch, in_precision, positions_of
from gqakit.errors import DataError, OutputError
from gqakit.models.agreement import check_convertible
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.blockwise.room import Load, opened_blocks
from gqakit.models.load import use_attention_interface
from gqakit.models.processes import Processes
from gqakit.models.running import Running, load_model
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Reporter, silent

LOG = logging.getLogger("gqakit")
WITH_GRADIENTS = 4
"""What a calibration with gradients takes in runs forwards: one, and one backwards, as long as three."""


@takes(CalibrateOptions)
def calibrate(
    model: str | Path, out: str | Path, options: CalibrateOptions, progress: Reporter = silent
) -> StatisticsFile:
    """Run a model over some text, images or speech once and save the statistics of every layer, of all stacks.

    A model that does not fit in memory runs block by block, to the same statistics up to rounding. Under `torchrun` or
    `accelerate launch` every process calls this: they share the windows, and the first writes.

    Args:
        model: directory or hub name.
        out: the statistics file, `.safetensors`.
        options: see `CalibrateOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        CheckpointError, FamilyError: about the model. DataError: about the text.
        OutputError: when `out` cannot be written. UsageError: for a checkpoint that is grouped already.
    """
    source = Source.open(model, options.stacks)
    check_convertible(source)
    return calibrate_source(source, Path(out), options.read(), options, progress)


def calibrate_source(
    source: Source, out: Path, content: Content, options: CalibrateOptions, progress: Reporter
) -> StatisticsFile:
    """`calibrate` for a model that is open and data that is read."""
    if not out.parent.is_dir() or out.is_dir():
        raise OutputError(f"statistics go into a file in a directory that exists; {out} is not one")
    processes = Processes.of_launch()
    source = source if options.stacks else source.with_all_stacks()
    batches = batches_of(source, content, window=options.window, tokens=options.tokens)
    positions = sum(map(positions_of, batches))
    header = StatisticsHeader(
        version=2 if options.gradients else 1,
        source=source.name,
        fingerprint=source.fingerprint,
        num_layers=source.spec.num_layers,
        width=source.spec.hidden_size,
        tokens=positions,
        tokens_asked=options.tokens,
        window=options.window,
        text=content.name,
        text_sha256=content.sha256,
    )
    processes.agree(header.model_dump(exclude={"source"}))
    if processes.is_first:
        _warn(source, content, positions)
    where = options.changed(device=processes.device(options.device))
    running = Running.of(where, source.checkpoint)
    job = _Calibration(source, out, header, running, processes, progress, options.gradients)
    try:
        job.run({n: in_precision(batch, running.dtype) for n, batch in enumerate(processes.mine(batches))})
    except DataError:
        for layer in range(source.spec.num_layers):
            source.layer(layer)  # names the tensor, if one is what is not finite
        raise
    processes.wait()
    return StatisticsFile.open(out)


@dataclass(frozen=True)
class _Calibration:
    """One calibration, checked: on this process's share of the input, but for the sums."""

    source: Source
    out: Path
    header: StatisticsHeader
    running: Running
    processes: Processes
    progress: Reporter
    gradients: bool

    def run(self, batches: Mapping[int, Batch]) -> None:
        """Run the model whole if it fits, else block by block, and write the statistics."""
        checkpoint, running = self.source.checkpoint, self.running
        if not running.whole(checkpoint):
            try:
                return self._in_sequence(batches)
            except NotByBlocks as error:
                LOG.warning("%s runs whole and not block by block, as %s", self.source.name, error)
        return self._whole(batches)

    @contextmanager
    def _writing(self) -> Iterator[Callable[[int, LayerStatistics | LayerGradients], None]]:
        """What takes the statistics of each layer: the file, of the first process."""
        if not self.processes.is_first:
            yield lambda layer, moments: None
            return
        with writing_statistics(self.out, self.header) as write:
            yield lambda layer, moments: write(self.source.spec.key(layer), moments)

    def _reporter(self) -> Reporter:
        return self.progress if self.processes.is_first else silent

    def _whole(self, batches: Mapping[int, Batch]) -> None:
        spec = self.source.spec
        model = load_model(self.source.checkpoint, self.running.dtype, self.running.device)
        use_attention_interface(model, spec)
        with self._reporter()(
            "calibrate", sum(map(positions_of, batches.values())), spec.family.unit
        ) as advance:
            layers = collect_statistics(model, spec, batches.values(), advance, self.processes)
        found: dict[int, LayerGradients] = {}
        if self.gradients:
            with self._backwards(sum(map(positions_of, batches.values()))) as advance:
                found = collect_gradients(model, spec, batches.values(), advance, self.processes)
        with self._writing() as write:
            for layer, moments in [*layers.items(), *found.items()]:
                write(layer, moments)

    @contextmanager
    def _backwards(self, total: int) -> Iterator[Callable[[int], None]]:
        """Progress of the backward pass; a model that has none goes without, and one line says so."""
        try:
            with self._reporter()("calibrate backwards", total, self.source.spec.family.unit) as advance:
                yield advance
        except (NoGradientError, NotByBlocks) as error:
            LOG.warning(
                "%s cannot be differentiated here (%s), so what its layers lose when they are converted is measured, not "
                "predicted",
                self.source.name,
                error,
            )

    def _in_sequence(self, batches: Mapping[int, Batch]) -> None:
        spec, sizes = self.source.spec, [positions_of(batch) for batch in batches.values()]
        run = {"calibration": self.header.model_dump(), "rank": self.processes.rank}
        load = Load(max(sizes, default=1), MATRICES * 8 * spec.hidden_size**2)
        checkpoint, folder = self.source.checkpoint, self.out.parent
        with opened_blocks(checkpoint, spec, self.running, run, load, folder) as blocks:
            total = sum(sizes) * blocks.count
            with (
                self._writing() as write,
                self._reporter()("calibrate", total, f"{spec.family.unit} x blocks") as advance,
            ):
                seen: Callable[[int], None] = lambda window: advance(positions_of(batches[window]))  # noqa: E731
                collect_in_sequence(blocks, batches, write, seen, self.processes, keep=self.gradients)
                if self.gradients:
                    with self._backwards(total) as back:
                        passed: Callable[[int], None] = lambda window: back(positions_of(batches[window]))  # noqa: E731
                        collect_gradients_by_block(blocks, batches, write, passed, self.processes)


def _warn(source: Source, content: Content, positions: int) -> None:
    """Say what costs quality: too little data, or gqakit's own text in place of the user's."""
    spec = source.spec
    if content.name == "gqakit calibration text":
        LOG.warning(
            "Calibrating on the small text that comes with gqakit. Text like what the model is used for keeps far more "
            "quality: on WikiText, SmolLM2 with 1 of 3 KV heads has a perplexity of 45 calibrated on WikiText and of 90 "
            "calibrated on this text (27.6 before).%s",
            " Where there is none, what `gqakit sample` lets the model write is better than this text."
            if spec.family.task == "text"
            else "",
        )
    if spec.family.task != "image" and positions < spec.hidden_size:  # an image has many positions
        LOG.warning(
            "%s: only %d tokens, fewer than the model is wide (%d), so the statistics say nothing about most directions. "
            "Calibrate on more.",
            content.name,
            positions,
            spec.hidden_size,
        )
