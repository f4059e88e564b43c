"""What the benchmarks share: the model, the text, plain tables."""

from __future__ import annotations

import argparse
import os
import platform
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


class Table:
    """A Markdown table that prints each row as soon as it is measured."""

    def __init__(self, title: str, *header: str) -> None:
        print(f"\n## {title}\n\n| " + " | ".join(header) + " |")
        print("|" + "---|" * len(header), flush=True)

    def row(self, *cells: str) -> None:
        """One line."""
        print("| " + " | ".join(cells) + " |", flush=True)
