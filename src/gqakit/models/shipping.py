"""The model code that goes into every grouped checkpoint, so that it loads without gqakit installed."""

from __future__ import annotations

from pathlib import Path

SHIPPED_FILES = (
    "adapters_gqakit.py",
    "attention_gqakit.py",
    "configuration_gqakit.py",
    "heads_gqakit.py",
    "kernels_gqakit.py",
    "loops_gqakit.py",
    "modeling_gqakit.py",
    "packing_gqakit.py",
    "vectors_gqakit.py",
)


def shipped_code() -> dict[str, bytes]:
    """The files to write beside `config.json`, name to content; `auto_map` points into them."""
    code = Path(__file__).with_name("remote_code")
    return {name: (code / name).read_bytes() for name in SHIPPED_FILES}
