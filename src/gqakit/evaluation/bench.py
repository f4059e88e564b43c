"""`bench`: how fast checkpoints read a context and write after it, and what they hold in memory, as ratios in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gqakit.errors import FamilyError, UsageError
from gqakit.evaluation.bench_options import BenchOptions
from gqakit.models.architectures import architecture
from gqakit.models.outputs import predicts_tokens
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Reporter, silent


@dataclass(frozen=True)
class BenchRow:
    """One checkpoint at one context and batch.

    Attributes:
        prefill, decode: tokens per second, medians over the rounds.
        prefill_ratio, decode_ratio: times as fast as the first checkpoint, the median of each round's ratio.
        cache_bytes: of the cache after the context. weight_bytes: of the weights in memory.
        peak_bytes: the most that was allocated on a GPU; None on a CPU, where it is not known for one model.
    """

    name: str
    context: int
    batch: int
    prefill: float
    decode: float
    prefill_ratio: float
    decode_ratio: float
    cache_bytes: int
    weight_bytes: int
    peak_bytes: int | None

    HEADER = (
        *("checkpoint", "context x batch", "prefill tok/s", "ratio", "decode tok/s", "ratio"),
        *("cache MiB", "weights MiB", "GPU peak MiB"),
    )

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        return (
            self.name, f"{self.context:,} x {self.batch}", f"{self.prefill:,.0f}", f"{self.prefill_ratio:.2f}",
            f"{self.decode:,.1f}", f"{self.decode_ratio:.2f}", f"{self.cache_bytes / 2**20:,.1f}",
            f"{self.weight_bytes / 2**20:,.0f}", "-" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:,.0f}",
        )  # fmt: skip


@takes(BenchOptions)
def bench(
    model: str | Path,
    others: Sequence[str | Path] = (),
    *,
    options: BenchOptions,
    progress: Reporter = silent,
) -> list[BenchRow]:
    """Speed of reading (prefill) and writing (decode) and the size of the cache, in transformers, beside each other.

    All checkpoints are in memory and take turns, so that what else the machine does falls on all alike; compare ratios.

    Args:
        model: the source. others: what was made of it; one or several.
        options: see `BenchOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        FamilyError: a checkpoint that does not write text. UsageError: a context that is longer than its positions.
        CheckpointError.
    """
    named = [others] if isinstance(others, str | Path) else others
    sources = [Source.open(each) for each in (model, *named)]
    running = [_Running.load(source, options) for source in sources]
    sizes = [(int(context), int(batch)) for context in options.contexts for batch in options.batches]
    most = max(context for context, _ in sizes) + options.new_tokens
    for each in running:
        limit = getattr(each.model.config, "max_position_embeddings", most) or most
        if most > limit:
            raise UsageError(
                f"{each.name}: {most:,} positions are asked for, it has {limit:,}; lower `contexts`"
            )
    rows: list[BenchRow] = []
    for context, batch in sizes:
        with progress(f"{context:,} x {batch}", options.rounds, "rounds") as advance:
            for turn in range(options.rounds + 1):  # the first warms up
                for each in running:
                    each.run(context, batch, options.new_tokens, keep=turn > 0)
                advance(1 if turn else 0)
        rows += [each.row(context, batch, running[0]) for each in running]
        for each in running:
            each.forget()
    return rows


@dataclass
class _Running:
    """A loaded checkpoint and its times, in seconds per round."""

    name: str
    model: Any
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    written: int = 0
    cache_bytes: int = 0
    peak: int | None = None

    @classmethod
    def load(cls, source: Source, options: BenchOptions) -> _Running:
        if source.spec.family.task == "text":  # what is not is refused before anything is loaded
            model = load_model(source.checkpoint, options.precision, options.device)
            if predicts_tokens(model):
                return cls(source.short_name, model)
        raise FamilyError(
            f"{source.name}: bench times how a model writes text after a context, which a "
            f"{architecture(source.checkpoint.config)} does not do"
        )

    def run(self, context: int, batch: int, new_tokens: int, *, keep: bool) -> None:
        """One round: read random tokens, then write greedily."""
        device = self.model.device
        vocabulary = self.model.get_input_embeddings().num_embeddings
        rng = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (batch, context), generator=rng).to(device)  # [B, T]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with torch.inference_mode():
            started = _now(device)
            out = self.model(ids, use_cache=True, logits_to_keep=1)
            read = _now(device)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(-1)  # [B, 1]
            size = _bytes_of(cache)
            for _ in range(new_tokens):
                last = self.model(last, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            wrote = _now(device)
        if keep:
            self.prefill.append(read - started)
            self.decode.append(wrote - read)
        self.written, self.cache_bytes = new_tokens, size
        if device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(device)

    def row(self, context: int, batch: int, first: _Running) -> BenchRow:
        """What the rounds come to, beside the first checkpoint's."""

        def ratio(theirs: list[float], ours: list[float]) -> float:
            return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))

        return BenchRow(
            name=self.name, context=context, batch=batch,
            prefill=batch * context / statistics.median(self.prefill),
            decode=batch * self.written / statistics.median(self.decode),
            prefill_ratio=ratio(first.prefill, self.prefill), decode_ratio=ratio(first.decode, self.decode),
            cache_bytes=self.cache_bytes,
            weight_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
            peak_bytes=self.peak,
        )  # fmt: skip

    def forget(self) -> None:
        """Before another size."""
        self.prefill, self.decode, self.peak = [], [], None


def _now(device: torch.device) -> float:
    if device.type == "cuda":  # work is queued there: wait for it
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes_of(cache: Any) -> int:
    """What the keys and values of a cache hold."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if isinstance(tensor, torch.Tensor)
    )
