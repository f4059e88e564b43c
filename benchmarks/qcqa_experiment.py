"""QCQA's comparison (figures 1 and 3): quality at several KV sizes, before training and after 1, 2, 3 epochs of it.

    python benchmarks/qcqa_experiment.py [--subject whisper] [--seeds 3] [--show]

GQA (mean of neighbours, the same number of heads in every layer) against QCQA with equal and with arbitrary groups
(mean, layers by their weight-sharing error, as the paper has it), and gqakit's default (fold, layers by measured
losses), all trained for the same steps at a rate that suits means; fold, which begins near the source, at a tenth of it
too. SmolLM2 has 3 KV heads per layer, so GQA has no 1/2 there and at 1/3 everything but fold is one conversion; Whisper
tiny.en has 6 heads and is distilled on synthetic speech; MiniLM-L6 has 12 heads and is fine-tuned on movie reviews.
Finished cells are kept in the scratch directory, so an interrupted run goes on; --show prints what there is, with a
plot beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common import arguments
from experiments import add_arguments, experiment
from language_trials import Language
from sentiment import Sentiment
from speech_trials import SpokenSentences
from trials import Subject, Ways

BASELINE = "GQA"
_FOLD = {"method": "optimal", "merge": "fold"}
WAYS: Ways = {
    BASELINE: {"method": "neighbour", "merge": "mean", "allocation": "uniform"},
    "QCQA-EC": {"method": "qcqa", "merge": "mean", "cardinality": "equal"},
    "QCQA-AC": {"method": "qcqa", "merge": "mean"},
    "fold": _FOLD,
    "fold, a tenth of the rate": {**_FOLD, "rate": 0.1},
}
SIZES = {
    "whisper": ("2/3", "1/2", "1/3"),
    "smollm2": ("2/3", "1/2", "1/3"),
    "minilm": ("1/2", "1/3", "1/4"),
}


def main() -> None:
    """Run and print."""
    parser = arguments(__doc__ or "")
    add_arguments(parser, tuple(SIZES), epochs=3)
    parser.add_argument("--speech", type=Path, default=Path("/usr/share/pocketsphinx/test/data"))
    parser.add_argument("--spoken", type=Path, help="recordings to train Whisper on, from spoken.py")
    options = parser.parse_args()
    make: dict[str, Callable[[Path], Subject]] = {
        "whisper": lambda work: SpokenSentences(options.speech, options.spoken, work),
        "smollm2": lambda work: Language(options.wikitext, work),
        "minilm": Sentiment,
    }
    experiment("qcqa", options, make, WAYS, SIZES, BASELINE)


if __name__ == "__main__":
    main()
