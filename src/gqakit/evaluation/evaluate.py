"""`evaluate`: several checkpoints, one text, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gqakit.core.budget import CacheShape
from gqakit.core.cache_types import CachePair, cache_pair
from gqakit.data.batches import Content, batches_of, unit_of
from gqakit.data.samples import Batch, positions_of
from gqakit.errors import DataError
from gqakit.evaluation.agreement import Pooling, agreement, embed, head_outputs, head_scores
from gqakit.evaluation.cache import measure_cache
from gqakit.evaluation.language import score_language
from gqakit.evaluation.options import EvaluateOptions
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.architectures import text_part
from gqakit.models.families.base import Task
from gqakit.models.outputs import Output, predicts_tokens, run
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Reporter, silent

POOLING: dict[Task, Pooling] = {"embedding": "mean", "image": "first"}
"""How the encoders of a task make one embedding of an input: sentence embedders average, image models have a first token.

A decoder's last position is the one that has read everything.
"""


@takes(EvaluateOptions)
def evaluate(
    model: str | Path,
    others: Sequence[str | Path] = (),
    *,
    options: EvaluateOptions,
    progress: Reporter = silent,
) -> list[EvaluationRow]:
    """Perplexity and divergence from the source, or agreement with it, and cache size, for a source and its conversions.

    What predicts tokens is scored by that; another head by how its choices agree with the source's; a model without a head
    by how its embeddings do (mean over positions of text, the first position of images, the last of a decoder).

    The source stays loaded, the others come one after another: two models in memory at a time. With `kv_cache` the source
    is scored as it is, then source and conversions with keys and values rounded as a cache of these types holds them.

    Args:
        model: the source.
        others: what was made of it; one directory or several.
        options: see `EvaluateOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        GqakitError: one of CheckpointError, FamilyError, DataError, UsageError.
    """
    named = [others] if isinstance(others, str | Path) else others
    conversions = [Source.open(name) for name in named]
    converted = {conversion.spec.stacks for conversion in conversions}  # a grouped checkpoint names them
    source = Source.open(model, converted.pop() if len(converted) == 1 else ())
    return evaluate_sources(source, conversions, options.read("evaluation"), options, progress)


def evaluate_sources(
    source: Source,
    conversions: Sequence[Source],
    content: Content,
    options: EvaluateOptions,
    progress: Reporter,
) -> list[EvaluationRow]:
    """`evaluate` for models that are open and data that is read."""
    _check_vocabulary(source, conversions)
    batches: list[Batch] = [*batches_of(source, content, window=options.window, tokens=options.tokens)]
    precision = getattr(torch, options.precision)
    if source.spec.family.task in ("image", "pair"):
        batches = [{**batch, "pixel_values": batch["pixel_values"].to(precision)} for batch in batches]
    rows: list[EvaluationRow] = []
    reference: Any = None
    types = check_cache_types(options.kv_cache, source.spec)
    runs: list[tuple[Source, CachePair | None]] = [(source, None)]
    runs += [(each, types) for each in ((source, *conversions) if types else conversions)]
    for each, pair in runs:
        spec = each.spec
        running = load_model(each.checkpoint, options.precision, options.device)
        called = each.short_name if pair is None else f"{each.short_name}, {pair.name}"
        with (
            progress(f"evaluate {called}", sum(map(positions_of, batches)), unit_of(spec)) as advance,
            rounded_cache(running, spec, pair),
        ):
            if predicts_tokens(running) and spec.family.task not in POOLING:
                scores = score_language(running, batches, reference, advance)
                reference = reference or running
            elif Output.of(run(running, batches[0])).is_logits:
                made = head_outputs(running, batches, advance)
                reference = reference or made
                scores = head_scores(made, reference)
            else:
                made = embed(running, batches, POOLING.get(spec.family.task, "last"), advance)
                reference = reference or made
                scores = agreement(made, reference)
        size = _Sizes(
            spec.cache, source.spec.cache, precision.itemsize, None if types is None else pair or HALVES
        )
        rows.append(
            EvaluationRow(
                name=each.short_name,
                kv_bytes_per_token=round(size.per_token),
                kv_bytes_measured=measure_cache(running, spec, batches[0], size.pair)
                if spec.is_cached
                else None,
                kv_ratio=size.ratio,
                scores=scores,
                kv_cache=None if pair is None else pair.name,
            )
        )
    return rows


HALVES = cache_pair("f16")
"""What a cache is compared with: 16 bits for each number."""


@dataclass(frozen=True)
class _Sizes:
    """A cache's size: in the precision of the run, or in the types that are asked for against 16 bits."""

    own: CacheShape
    source: CacheShape
    element_bytes: int
    pair: CachePair | None

    @property
    def per_token(self) -> float:
        if self.pair is not None:
            return self.own.bytes_in(self.pair)
        return replace(self.own, element_bytes=self.element_bytes).bytes_per_token

    @property
    def ratio(self) -> float:
        if self.pair is None:
            return self.own.ratio_to(self.source)
        return self.per_token / self.source.bytes_in(HALVES)


def _check_vocabulary(source: Source, conversions: Sequence[Source]) -> None:
    expected = text_part(source.checkpoint.config).get("vocab_size")
    for each in conversions:
        if (found := text_part(each.checkpoint.config).get("vocab_size")) != expected:
            raise DataError(
                f"{each.name} has a vocabulary of {found}, {source.name} one of {expected}: it was not made of it"
            )
