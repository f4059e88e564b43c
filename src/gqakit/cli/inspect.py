"""`gqakit inspect`."""

from __future__ import annotations

from gqakit.cli.console import Screen
from gqakit.cli.options import Json, Model, Quiet, Verbose


def command(model: Model, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Say what a checkpoint is, what its KV cache takes, and what it can become. Reads headers only."""
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.models.inspection import inspect_checkpoint, open_model

    found = inspect_checkpoint(*open_model(model), fingerprint=as_json)
    if as_json:
        screen.json(found)
        return
    kv = f"{min(found.key_heads)} to {max(found.key_heads)} key, {min(found.value_heads)} to {max(found.value_heads)} value"
    if len({*found.key_heads, *found.value_heads}) == 1:
        kv = str(found.key_heads[0])
    rotary = f"{found.rotary_dim} of {found.head_dim} channels" if found.rotary_dim else "none"
    cache = f"{found.kv_bytes_per_token:,} bytes per token, {found.kv_gib_at_32k:.2f} GiB at 32,768 tokens"
    size = ("KV cache", cache)
    if not found.cached:
        size = (
            "keys and values",
            f"{found.kv_bytes_per_token:,} bytes per position while it is read, none kept",
        )
    elif len(found.stacks) > 1:  # which grow with different lengths
        size = ("KV cache", f"{found.kv_bytes_per_token:,} bytes per position, all layers together")
    rows = [
        ("family", found.model_type),
        ("attention layers", f"{found.num_layers} ({' and '.join(found.stacks)})"),
        ("query heads", str(found.num_heads)),
        ("KV heads a layer", kv),
        ("head width", str(found.head_dim)),
        ("model width", str(found.hidden_size)),
        ("biases", ", ".join(found.biases) or "none"),
        ("rotary embedding", "after a key normalisation" if found.key_norm else rotary),
        (
            "weights",
            f"{found.weight_bytes / 2**20:,.0f} MiB of {found.dtype} in {found.tensors} tensors, {found.shards} files",
        ),
        size,
    ]
    screen.table(found.path, ("", ""), rows)
    screen.table(
        "Formats it can be converted to",
        ("format", "KV heads a layer", "kv_ratio", "why"),
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
