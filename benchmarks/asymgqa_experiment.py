"""AsymGQA's comparison: does grouping by activations, and in unequal groups, beat neighbours after equal fine-tuning?

    python benchmarks/asymgqa_experiment.py [--subject minilm] [--seeds 3] [--show]

Average groups of 2, 3 and 4 heads. MiniLM-L6 (12 heads) is scored by accuracy on short movie reviews; SmolLM2 has 3 KV
heads, so groups of 1.5 (with three ways to make them) and of 3 (with one). Every way keeps as many heads in every layer, one
map for keys and values. All are trained at a rate that suits means; fold, which begins near the source, at a tenth of it
too. Finished cells are kept in the scratch directory, so an interrupted run goes on; --show prints what there is, with a
plot beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common import arguments
from experiments import add_arguments, experiment
from language_trials import Language
from sentiment import Sentiment
from trials import Subject, Ways

BASELINE = "neighbour (GQA)"
_MEAN = {"merge": "mean", "allocation": "uniform"}
_FOLD = {"method": "optimal", "merge": "fold", "allocation": "uniform"}
WAYS: Ways = {
    BASELINE: {"method": "neighbour", **_MEAN},
    "activation, symmetric": {"method": "asymgqa", "symmetric": True, **_MEAN},
    "activation, asymmetric": {"method": "asymgqa", **_MEAN},
    "weights, symmetric": {
        "method": "asymgqa",
        "symmetric": True,
        "similarity": "weight",
        **_MEAN,
    },
    "fold": _FOLD,
    "fold, a tenth of the rate": {**_FOLD, "rate": 0.1},
}
SIZES = {"minilm": ("1/2", "1/3", "1/4"), "smollm2": ("2/3", "1/3")}


def main() -> None:
    """Run and print."""
    parser = arguments(__doc__ or "")
    add_arguments(parser, tuple(SIZES), epochs=1)
    options = parser.parse_args()
    make: dict[str, Callable[[Path], Subject]] = {
        "minilm": Sentiment,
        "smollm2": lambda work: Language(options.wikitext, work),
    }
    experiment("asymgqa", options, make, WAYS, SIZES, BASELINE)


if __name__ == "__main__":
    main()
