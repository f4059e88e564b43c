"""`evaluate`: several checkpoints, one text, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gqakit.calibration.calibrate import WINDOW, unit_of
from gqakit.core.budget import CacheShape
from gqakit.data.batches import DataSource, batches_of, read_source
from gqakit.data.samples import positions_of
from gqakit.errors import DataError
from gqakit.evaluation.agreement import agreement, embed
from gqakit.evaluation.cache import measure_cache
from gqakit.evaluation.language import score_language
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.inspection import open_model
from gqakit.models.running import PRECISIONS, load_model
from gqakit.progress import Reporter, silent

TOKENS = 4096


def evaluate(
    model: str,
    others: Sequence[str] = (),
    *,
    text: DataSource = ("evaluation",),
    window: int = WINDOW,
    tokens: int = TOKENS,
    dtype: str = "float32",
    device: str = "auto",
    progress: Reporter = silent,
) -> list[EvaluationRow]:
    """Perplexity and divergence from the source, or agreement with it, and cache size, for a source and its conversions.

    What predicts tokens is scored by that; an encoder by how its embeddings agree with the source's (mean over positions
    of text, the first position of images).

    The source stays loaded, the others come one after another: two models in memory at a time.

    Args:
        model: the source.
        others: what was made of it.
        text: text files, "evaluation" for the held-out text that comes with gqakit, or a `Text`, `Images` or `Speech`.
        window: tokens a window, each scored alone.
        tokens: at most so many, in whole windows.
        dtype: precision to run in; cache sizes are at this precision.
        device: "cpu", "cuda" or "auto".
        progress: see the package.

    Raises:
        CheckpointError, FamilyError, DataError, UsageError.
    """
    conversions = [(name, *open_model(name)) for name in others]
    told = {spec.stacks for _, _, spec in conversions}  # a grouped checkpoint says what was converted
    opened = [(model, *open_model(model, told.pop() if len(told) == 1 else None)), *conversions]
    _, source, source_spec = opened[0]
    for name, checkpoint, _ in opened[1:]:
        if checkpoint.config.get("vocab_size") != source.config.get("vocab_size"):
            raise DataError(
                f"{name} has a vocabulary of {checkpoint.config.get('vocab_size')}, {model} one of "
                f"{source.config.get('vocab_size')}: it was not made of it"
            )
    batches = batches_of(source, source_spec, read_source(text), window=window, tokens=tokens)
    if source_spec.family.task == "image":
        batches = [
            {**batch, "pixel_values": batch["pixel_values"].to(PRECISIONS[dtype])} for batch in batches
        ]
    pooling = {"embedding": "mean", "image": "first"}.get(source_spec.family.task)
    rows: list[EvaluationRow] = []
    reference: Any = None
    for name, checkpoint, spec in opened:
        running = load_model(checkpoint, dtype, device)
        with progress(
            f"evaluate {Path(name).name}", sum(map(positions_of, batches)), unit_of(spec)
        ) as advance:
            if pooling is None:
                scores = score_language(running, batches, reference, advance)
                reference = reference or running
            else:
                made = embed(running, batches, pooling, advance)  # pyright: ignore[reportArgumentType]
                reference = reference or made
                scores = agreement(made, reference)
        cache = CacheShape(spec.key_heads, spec.value_heads, spec.head_dim, PRECISIONS[dtype].itemsize)
        rows.append(
            EvaluationRow(
                name=Path(name).name,
                kv_bytes_per_token=cache.bytes_per_token,
                kv_bytes_measured=measure_cache(running, spec, batches[0]) if spec.is_cached else None,
                kv_ratio=cache.ratio_to(source_spec.cache),
                scores=scores,
            )
        )
    return rows
