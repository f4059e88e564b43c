"""`evaluate`: several checkpoints, one text, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gqakit.api.calibrating import WINDOW
from gqakit.api.models import PRECISIONS, load_model, load_tokenizer
from gqakit.calibration.text import Text, read_text, token_windows
from gqakit.core.capacity import CacheShape
from gqakit.errors import DataError
from gqakit.evaluation.cache import measure_cache
from gqakit.evaluation.language import score_language
from gqakit.inspection import open_model
from gqakit.progress import Reporter, silent
from gqakit.report.evaluation import EvaluationRow

TOKENS = 4096


def evaluate(
    model: str,
    others: Sequence[str] = (),
    *,
    text: Text | Sequence[str | Path] = ("evaluation",),
    window: int = WINDOW,
    tokens: int = TOKENS,
    dtype: str = "float32",
    device: str = "auto",
    progress: Reporter = silent,
) -> list[EvaluationRow]:
    """Perplexity, divergence from the source and cache size, for a source and its conversions.

    The source stays loaded, the others come one after another: two models in memory at a time.

    Args:
        model: the source.
        others: what was made of it.
        text: a `Text`, or files, or "evaluation" for the held-out text that comes with gqakit.
        window: tokens a window, each scored alone.
        tokens: at most so many, in whole windows.
        dtype: precision to run in; cache sizes are at this precision.
        device: "cpu", "cuda" or "auto".
        progress: see the package.

    Raises:
        CheckpointError, FamilyError, DataError, UsageError.
    """
    opened = [(name, *open_model(name)) for name in (model, *others)]
    _, source, source_spec = opened[0]
    for name, checkpoint, _ in opened[1:]:
        if checkpoint.config.get("vocab_size") != source.config.get("vocab_size"):
            raise DataError(
                f"{name} has a vocabulary of {checkpoint.config.get('vocab_size')}, {model} one of "
                f"{source.config.get('vocab_size')}: it was not made of it"
            )
    content = text if isinstance(text, Text) else read_text(text)
    windows = token_windows(load_tokenizer(source), content, window=window, tokens=tokens)
    rows: list[EvaluationRow] = []
    reference = None
    for name, checkpoint, spec in opened:
        running = load_model(checkpoint, dtype, device)
        with progress(f"evaluate {Path(name).name}", windows.numel(), "tokens") as advance:
            scores = score_language(running, windows, reference, advance)
        cache = CacheShape(spec.key_heads, spec.value_heads, spec.head_dim, PRECISIONS[dtype].itemsize)
        rows.append(
            EvaluationRow(
                name=Path(name).name,
                kv_bytes_per_token=cache.bytes_per_token,
                kv_bytes_measured=measure_cache(running),
                kv_ratio=cache.ratio_to(source_spec.cache),
                scores=scores,
            )
        )
        reference = reference or running
    return rows
