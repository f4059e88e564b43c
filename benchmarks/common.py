"""What the benchmarks share: the model, the text, plain tables."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

SIBLING = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks on text take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--wikitext",
        type=Path,
        default=SIBLING,
        help="directory with valid.txt and test.txt of WikiText-2 (raw text, <unk> version)",
    )
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"), help="scratch directory")
    return parser


def environment() -> str:
    """Versions and processors, for the record."""
    import torch
    import transformers

    return (
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, float32"
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with a heading."""
    print(f"\n## {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
