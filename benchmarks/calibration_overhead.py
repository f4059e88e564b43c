"""What calibration costs over a plain forward pass on the same input.

    OMP_NUM_THREADS=1 python benchmarks/calibration_overhead.py [--model minilm] …

The stock model, and the same model with its statistics collected, take turns in every round, in turn first and second. Times
are of the processor, of one thread; ratios are medians over the rounds of the two times of one round, with the quartiles in
brackets. Text is as long as `calibrate` takes it by itself. A language model is compared with itself giving the logits of
the last position only, as calibration needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from common import Table, arguments, environment, paired_times, text_of
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.options import TOKENS
from gqakit.data.batches import Content, batches_of
from gqakit.models.load import load
from gqakit.models.source import Source
from real_models import images_of
from zoo import DINOV2_SMALL, MINILM, SMOLLM2, PackagedModel, fetch


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", action="append", help="smollm2, minilm, dinov2 (default: all)")
    parser.add_argument("--window", type=int, nargs="+", help="tokens of each (default: two of each model)")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-9000.npz"))
    parser.add_argument("--image-size", type=int, nargs="+", default=[112, 224])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    table = Table(
        "Calibration against the plain forward pass",
        "model",
        "input",
        "plain, ms",
        "calibrating, ms",
        "ratio",
    )
    text = text_of(options.wikitext, "valid")
    texts = {"smollm2": (SMOLLM2, (512, 2048)), "minilm": (MINILM, (96, 512))}
    for name in options.model or (*texts, "dinov2"):
        if name in texts:
            model, windows = texts[name]
            inputs = [(text, window, TOKENS) for window in options.window or windows]
        else:
            model = DINOV2_SMALL
            inputs = [(images_of(options.images, "calibrate", size), size, 1) for size in options.image_size]
        _rows(table, model, inputs, options.rounds)


def _rows(
    table: Table, which: PackagedModel, inputs: Sequence[tuple[Content, int, int]], rounds: int
) -> None:
    """One model on each of its inputs: what to read; of text, tokens per window and in all."""
    path = fetch(which)
    source = Source.open(path).with_all_stacks()
    spec = source.spec
    model = load(path, dtype=torch.float32)
    keep = {"logits_to_keep": 1} if spec.family.task == "text" else {}
    for content, window, tokens in inputs:
        batches = batches_of(source, content, window=window, tokens=tokens)
        plain = _plain(model, batches, keep)
        calibrating = lambda batches=batches: collect_statistics(model, spec, batches)  # noqa: E731
        first = next(iter(batches[0].values()))
        medians, ratio = paired_times([plain, calibrating], rounds)
        cells = (f"{seconds * 1e3:.0f}" for seconds in medians)
        table.row(which.name, f"{len(batches)} × {list(first.shape)}", *cells, ratio)


def _plain(model: PreTrainedModel, batches: list[dict[str, Any]], keep: dict[str, int]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch, **keep)

    return run


if __name__ == "__main__":
    main()
