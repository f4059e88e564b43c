"""QCQA's comparison (figures 1 and 3): quality at several KV sizes, before training and after 1, 2, 3 epochs of it.

    python benchmarks/qcqa_experiment.py [--subject whisper] [--seeds 3] [--show]

GQA (mean of neighbours, the same number of heads in every layer) against QCQA with equal and with arbitrary groups (mean,
layers by their weight-sharing error, as the paper has it), and gqakit's default (fold, layers by measured losses), all
trained for the same steps at a rate that suits means; fold, which begins near the source, at a tenth of it too. SmolLM2 has
3 KV heads a layer, so GQA has no 1/2 there and at 1/3 everything but fold is one conversion; Whisper tiny.en has 6 heads and
is distilled on synthetic speech; MiniLM-L6 has 12 heads and is fine-tuned on movie reviews. Finished cells are kept in the
scratch directory, so an interrupted run goes on; --show prints what there is, with a plot beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import arguments, environment
from language_trials import Language
from sentiment import Sentiment
from speech_trials import SpokenSentences
from trial_tables import plot, tables
from trials import Cells, Ways, run

BASELINE = "GQA"
WAYS: Ways = {
    BASELINE: {"method": "neighbour", "merge": "mean", "allocation": "uniform"},
    "QCQA-EC": {"method": "qcqa", "merge": "mean", "cardinality": "equal"},
    "QCQA-AC": {"method": "qcqa", "merge": "mean"},
    "fold": {"method": "optimal", "merge": "fold"},
    "fold, a tenth of the rate": {"method": "optimal", "merge": "fold", "rate": 0.1},
}
SIZES = {
    "whisper": ("2/3", "1/2", "1/3"),
    "smollm2": ("2/3", "1/2", "1/3"),
    "minilm": ("1/2", "1/3", "1/4"),
}


def main() -> None:
    """Run and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--subject", action="append", choices=tuple(SIZES), help="which (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of training after the conversion")
    parser.add_argument("--speech", type=Path, default=Path("/usr/share/pocketsphinx/test/data"))
    parser.add_argument("--spoken", type=Path, help="recordings to train Whisper on, from spoken.py")
    parser.add_argument("--show", action="store_true", help="run nothing, print what is finished")
    options = parser.parse_args()
    make: dict[str, Callable[..., Any]] = {
        "whisper": lambda work: SpokenSentences(options.speech, options.spoken, work),
        "smollm2": lambda work: Language(options.wikitext, work),
        "minilm": lambda work: Sentiment(work),
    }
    print(environment(), flush=True)
    for name in options.subject or SIZES:
        work = options.work / name
        work.mkdir(parents=True, exist_ok=True)
        subject = make[name](work)
        settings = {**subject.settings, "epochs": options.epochs}
        cells = Cells(work / "qcqa.json", settings)
        if not options.show:
            run(cells, subject, WAYS, SIZES[name], options.seeds, options.epochs, work)
        print(f"\n{subject.name}: {', '.join(f'{key} {value}' for key, value in settings.items())}")
        tables(cells, subject, WAYS, SIZES[name], options.epochs, BASELINE)
        plot(work / f"qcqa-{name}.png", cells, subject, WAYS, SIZES[name], options.epochs)


if __name__ == "__main__":
    main()
