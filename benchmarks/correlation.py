"""Is a method's score any guide? `gqakit correlate` for every real model, as tables and plots.

    python benchmarks/correlation.py [--model minilm] [--merge mean] …

Statistics and losses come from different data: text from WikiText-2 valid and test, images from two parts of CIFAR-10,
speech from sentences that `spoken.py` made (--spoken) and from the five read ones of Debian's pocketsphinx-testdata
(--speech its `test/data` directory), with what the model hears in them. Losses stay in the scratch directory; an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common import Table, arguments, calibrated, environment, real_data, text_of
from gqakit.data.batches import Content
from gqakit.data.samples import read_speech
from gqakit.planning.correlation.correlate import correlate
from gqakit.planning.correlation.options import CorrelateOptions
from gqakit.planning.correlation.report import HEADER, lines, plot_correlation
from real_models import images_of, other_recordings
from zoo import (
    DINOV2_SMALL,
    MINILM,
    MPNET,
    SMOLLM2,
    WHISPER_BASE,
    WHISPER_TINY,
    PackagedModel,
    fetch,
)


@dataclass(frozen=True)
class Case:
    """One real model: what it is calibrated and measured on, and what of it is sampled.

    `kv_heads` are the numbers of heads that it is grouped to, `stacks` the sets of layers that are looked at one by one;
    `tokens` and `measured` are of text, for the calibration and for losses.
    """

    name: str
    model: Path
    calibrate_on: Content
    losses_from: Content
    kv_heads: tuple[int, ...]
    layers: int
    stacks: tuple[tuple[str, ...], ...] = ((),)
    window: int = 512
    tokens: int = 12_288
    measured: int = 1536


def cases(
    wikitext: Path, images: Path, image_size: int, speech: Path, spoken: Path | None
) -> dict[str, Callable[[], Case]]:
    """By the names of `--model`; each reads its data when it is called."""

    def text(which: PackagedModel) -> Case:
        calibrate_on, losses = text_of(wikitext, "valid"), text_of(wikitext, "test")
        if which is SMOLLM2:
            return Case(which.name, fetch(which), calibrate_on, losses, (1, 2), 30)
        return Case(which.name, fetch(which), calibrate_on, losses, (3, 6, 9), 6, window=96, measured=768)

    def speaking(which: PackagedModel, kv_heads: tuple[int, ...]) -> Case:
        heard = read_speech(sorted((speech / "librivox").glob("*.wav")))
        stacks = (("decoder",), ("cross",))
        calibrate_on = read_speech([spoken]) if spoken is not None else other_recordings(speech)
        return Case(which.name, fetch(which), calibrate_on, heard, kv_heads, 6, stacks)

    def looking() -> Case:
        calibrate_on, losses = (images_of(images, part, image_size) for part in ("calibrate", "weigh"))
        losses = replace(losses, pixels=losses.pixels[:16])
        return Case(DINOV2_SMALL.name, fetch(DINOV2_SMALL), calibrate_on, losses, (2, 3, 4), 6)

    return {
        "smollm2": lambda: text(SMOLLM2),
        "minilm": lambda: text(MINILM),
        "mpnet": lambda: text(MPNET),
        "dinov2": looking,
        "whisper-tiny": lambda: speaking(WHISPER_TINY, (2, 3, 4)),
        "whisper-base": lambda: speaking(WHISPER_BASE, (2, 4, 6)),
    }


def main() -> None:
    """Measure, print and draw."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--model", action="append", help="smollm2, minilm, mpnet, dinov2, whisper-tiny, whisper-base"
    )
    parser.add_argument("--merge", action="append", help="merge rules (default: fold and mean)")
    parser.add_argument(
        "--random", type=int, default=16, help="random groupings per layer and number of heads"
    )
    real_data(parser)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(environment())
    known = cases(options.wikitext, options.images, options.image_size, options.speech, options.spoken)
    for name in options.model or known:
        case = known[name]()
        for stacks in case.stacks:
            for merge in options.merge or ("fold", "mean"):
                _show(name, case, stacks, merge, options)


def _show(model: str, case: Case, stacks: tuple[str, ...], merge: str, chosen: argparse.Namespace) -> None:
    """The table and the plot of one model, one kind of layers, one merge rule."""
    work = chosen.work
    statistics = work / f"statistics-correlation-{case.name}.safetensors"
    calibrated(case.model, statistics, text=case.calibrate_on, window=case.window, tokens=case.tokens)
    which = "-".join((case.name, *stacks, merge))
    options = CorrelateOptions(
        statistics=statistics,
        merge=merge,
        kv_heads=case.kv_heads,
        layers=case.layers,
        random_groupings=chosen.random,
        stacks=stacks,
        text=case.losses_from,
        window=case.window,
        measure_tokens=case.measured,
        losses=work / f"losses-correlation-{which}.jsonl",
    )
    found = correlate(case.model, options=options, progress=False)
    where = f", {' and '.join(stacks)}" if stacks else ""
    title = f"{case.name}{where}, {merge}"
    table = Table(f"{title}: {len(found.samples)} groupings, {found.loss}", *HEADER)
    for line in lines(found.rows, found.best):
        table.row(*line)
    made_by = (
        f"benchmarks/correlation.py --model {model}: {len(found.samples)} groupings, losses on held-out data"
    )
    plot_correlation(work / f"correlation-{which}.png", title, found, made_by)


if __name__ == "__main__":
    main()
