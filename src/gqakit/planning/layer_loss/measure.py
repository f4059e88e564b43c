"""The loss of converting one layer alone, for every candidate that a plan could take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.apply import apply_grouping, in_source_shape
from gqakit.core.cache_types import CachePair
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES
from gqakit.data.batches import Content, batches_of
from gqakit.data.samples import Batch, in_precision, positions_of
from gqakit.models.architectures import has_no_head
from gqakit.models.layers import tensors_of_layer
from gqakit.models.rounding import rounded_cache
from gqakit.models.running import check_device, load_model, precision_of
from gqakit.models.source import Source
from gqakit.planning.candidates import EntryCandidates
from gqakit.planning.layer_features import LayerFeatures, LayerReader
from gqakit.planning.layer_loss.file import Key, LossFile, LossHeader, measured_on
from gqakit.planning.layer_loss.probe import LayerProbe
from gqakit.planning.options import LossOptions
from gqakit.planning.workers import LayerFiles, Workers
from gqakit.progress import Reporter


def what_is_measured(source: Checkpoint) -> str:
    """What `LayerProbe.divergence` gives for a model, in words."""
    return "relative squared error of the output" if has_no_head(source.config) else "KL to the source, nats"


@dataclass(frozen=True)
class Bench:
    """What it takes to measure losses, in this process or in another: all of it can be sent there.

    Attributes:
        merge: name of the merge rule.
        batches: what the model is run on.
        device: torch's name of it.
        dtype: that the model runs in.
        kv_cache: types of the cache in which a converted layer keeps its keys and values; None rounds nothing.
    """

    merge: str
    batches: list[Batch]
    device: str
    dtype: torch.dtype = torch.float32
    kv_cache: CachePair | None = None


@dataclass(frozen=True)
class Measurement:
    """Measures what candidates lose, and keeps every loss in a file as soon as it is known.

    Attributes:
        bench: the model and what it is run on.
        header: what the losses are about, for the file.
        file: where they are kept; None for memory alone.
        replace: start the file over where it is about something else, in place of refusing it.
        workers: processes that share the layers, each with the model in memory.
        progress: hears of every candidate that was measured.
    """

    bench: Bench
    header: LossHeader
    file: Path | None
    replace: bool
    workers: int
    progress: Reporter
    _loaded: list[Prober] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def on(
        cls,
        source: Source,
        statistics: StatisticsFile | None,
        merge: str,
        content: Content,
        window: int,
        options: LossOptions,
        progress: Reporter,
    ) -> Measurement:
        """The measurement for a model, on data that was read. Losses are kept where `losses` says, else in memory alone.

        Raises:
            DataError: too little of it. CheckpointError: the model has no tokenizer. UsageError: no such device.
        """
        spec, device = source.spec, check_device(options.device)
        dtype = precision_of(source.checkpoint, options.precision, device)
        batches = batches_of(source, content, window=window, tokens=options.measure_tokens)
        bench = Bench(merge, [in_precision(batch, dtype) for batch in batches], device, dtype)
        header = LossHeader(
            source=source.fingerprint_like(measured_on(options.losses)),
            stacks=spec.noted_stacks,
            moments=None if statistics is None else statistics.fingerprint,
            merge=merge if dtype == torch.float32 else f"{merge} in {str(dtype).removeprefix('torch.')}",
            text_sha256=content.sha256,
            windows=len(batches),
            window=positions_of(batches[0]),
        )
        return cls(bench, header, options.losses, False, options.workers, progress)

    def kept_in(self, path: Path | None) -> Measurement:
        """With losses kept in a file, unless they are in one already.

        What the file holds about anything else is replaced, which a file of one's own never is.
        """
        return self if self.file is not None else replace(self, file=path, replace=True)

    def __call__(
        self, candidates: Sequence[EntryCandidates], read: LayerReader
    ) -> Sequence[Mapping[int, float]]:
        """What each candidate of each entry loses: `KL(source ‖ model)` when nothing else is converted.

        Raises:
            PlanError: when the output is not finite.
        """
        wanted: list[list[tuple[int, Key]]] = [
            [(count, (entry.layer, entry.side, c.partition.labels)) for count, c in entry.by_count.items()]
            for entry in candidates
        ]
        known = self.measure([key for entry in wanted for _, key in entry], read)
        return [{count: known.get(key, 0.0) for count, key in entry} for entry in wanted]

    def measure(self, keys: Iterable[Key], read: LayerReader) -> Mapping[Key, float]:
        """The losses of groupings of single layers; those that the file knows are not measured again."""
        header = self.header
        if read.behind_norm:
            header = header.model_copy(update={"merge": f"{header.merge} behind the normalisation"})
        if self.bench.kv_cache is not None:
            header = header.model_copy(update={"merge": f"{header.merge} in {self.bench.kv_cache.name}"})
        losses = LossFile.open(header, self.file, replace=self.replace)
        missing: dict[int, list[Key]] = {}
        for key in dict.fromkeys(keys):
            if key not in losses.known and not Partition(key[2]).is_identity:
                missing.setdefault(key[0], []).append(key)
        total = sum(map(len, missing.values()))
        if total:
            with self.progress("measure", total, "candidates") as advance:
                for key, loss in self._run(missing, read):
                    losses.add(key, loss)
                    advance(1)
        return losses.known

    def _run(self, missing: Mapping[int, list[Key]], read: LayerReader) -> Iterator[tuple[Key, float]]:
        layers = sorted(missing)
        if self.workers == 1:
            if (
                not self._loaded or self._loaded[0].read is not read
            ):  # the model is loaded once for several rounds
                self._loaded[:] = [Prober(self.bench, read)]
            (prober,) = self._loaded
            for layer in layers:
                yield from prober.measure(layer, missing[layer])
            return
        given = LayerFiles.of(read), self.bench
        with Workers(self.workers, _start, given, "the model; what was measured is kept") as pool:
            pending = [pool.submit(_measure, layer, missing[layer]) for layer in layers]
            for future in pending:
                yield from pool.result(future)


class Prober:
    """A source model, probed layer by layer."""

    def __init__(self, bench: Bench, read: LayerReader) -> None:
        self.read, self.merge = read, bench.merge
        self.model, self.pair = load_model(read.source.checkpoint, bench.dtype, bench.device), bench.kv_cache
        self.probe = LayerProbe(self.model, read.source.spec, bench.batches)

    def measure(self, layer: int, keys: Sequence[Key]) -> Iterator[tuple[Key, float]]:
        """The loss of each grouping of one layer."""
        features = self.read(layer)
        with rounded_cache(self.model, self.read.source.spec, self.pair, (layer,)):
            for key in keys:
                yield key, self.probe.divergence(layer, _converted(features, key, self.merge), key[2])


def _converted(features: LayerFeatures, key: Key, merge: str) -> dict[str, Tensor]:
    """The layer's tensors after one grouping, in the shapes of the source."""
    layer, side, labels = key
    rule = RULES[merge]
    chosen, same = Partition(labels), Partition.identity(len(labels))
    grouping = Grouping(same if side == "value" else chosen, same if side == "key" else chosen)
    fixed = features.spec.fixed_queries
    converted = apply_grouping(
        features.weights, grouping, features.key, features.value, rule, rule, fixed_queries=fixed
    )
    return tensors_of_layer(features.spec, layer, in_source_shape(converted, grouping, fixed_queries=fixed))


_prober: Prober | None = None
"""The prober of a worker process."""


def _start(files: LayerFiles, bench: Bench) -> None:
    global _prober
    _prober = Prober(bench, files.reader())


def _measure(layer: int, keys: Sequence[Key]) -> list[tuple[Key, float]]:
    assert _prober is not None
    return list(_prober.measure(layer, keys))
