"""`gqakit inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.models.inspect_options import InspectOptions

if TYPE_CHECKING:
    from gqakit.models.inspection import Inspection


@command(InspectOptions, examples=("inspect MODEL", "inspect MODEL --context 131072 --batch 8 --dtype bf16"))
def inspect(screen: Screen, model: Model, options: InspectOptions) -> None:
    """Say what a checkpoint is, what its KV cache takes, and what it can become. Reads headers only."""
    from gqakit.models.inspection import inspect

    found = inspect(model, options=options)
    if screen.as_json:
        screen.json(found)
        return
    heads = _span(found.key_heads), _span(found.value_heads)
    rotary = f"{found.rotary_dim} of {found.head_dim} channels"
    rotary += ", after a key normalisation" if found.key_norm else ""
    weights = f"{found.weight_bytes / 2**20:,.0f} MiB of {found.dtype} in {found.tensors} tensors"
    weights += "" if found.shards == 1 else f", {found.shards} files"
    rows = [
        ("family", found.model_type),
        ("attention layers", f"{found.num_layers} ({' and '.join(found.stacks)})"),
        ("query heads", str(found.num_heads)),
        ("KV heads per layer", heads[0] if heads[0] == heads[1] else f"{heads[0]} key, {heads[1]} value"),
        ("head width", str(found.head_dim)),
        ("model width", str(found.hidden_size)),
        ("biases", ", ".join(found.biases) or "none"),
        *([("rotary embedding", rotary)] if found.rotary_dim else []),
        ("weights", weights),
        *_cache(found),
    ]
    screen.table(found.path, ("", ""), rows)
    screen.table(
        "Formats it can be converted to",
        ("format", "KV heads per layer", "kv_ratio", "why"),
        [
            (
                reach.format,
                ", ".join(map(str, reach.kv_heads)) or "none",
                ", ".join(f"{n / found.key_heads[0]:.3g}" for n in reach.kv_heads) or "none",
                reach.why,
            )
            for reach in found.formats
        ],
    )


def _span(heads: tuple[int, ...]) -> str:
    return str(heads[0]) if len(set(heads)) == 1 else f"{min(heads)} to {max(heads)}"


def _cache(found: Inspection) -> list[tuple[str, str]]:
    """What the cache takes, in the checkpoint's precision (or the one asked for) and in 16 bits."""
    sizes = {found.cache_dtype: (found.kv_bytes_per_token, found.kv_gib)}
    if found.kv_bytes_per_token != found.kv_bytes_per_token_16_bit:
        sizes["16 bits"] = (found.kv_bytes_per_token_16_bit, found.kv_gib_16_bit)
    if not found.cached:
        made = "; ".join(f"{n:,} bytes in {name}" for name, (n, _) in sizes.items())
        return [("keys and values", f"{made}, per position while it is read, none kept")]
    at = f"{found.batch} × {found.context:,}" if found.batch > 1 else f"{found.context:,}"
    several = " per position, all layers together" if len(found.stacks) > 1 else " per token"
    return [
        (f"KV cache, {name}", f"{n:,} bytes{several}; {gib:.2f} GiB at {at} tokens")
        for name, (n, gib) in sizes.items()
    ]
