"""The pages of `gqakit compare` under docs/results: SmolLM2 and MiniLM, ways × budgets × types of cache.

    python benchmarks/result_pages.py [--model smollm2] [--docs docs/results]

Calibrated on WikiText-2 valid, scored on the beginning of test. Cells are kept under `--work`: an interrupted run goes on,
and where all are there only the page is written again. Model and texts are named relative to that directory, so that pages
carry no path of this machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gqakit
from common import Table, arguments, environment
from gqakit.evaluation.measures import measures_named
from zoo import MINILM, SMOLLM2, fetch

SHARED: dict[str, Any] = {"text": "valid.txt", "evaluate_text": "test.txt", "tokens": 12_288}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "smollm2": (
        SMOLLM2,
        {
            "ways": "neighbour-mean,aligned,fold",
            "kv_ratios": "2/3,1/3",
            "kv_cache": ["q8_0", "q4_0+h"],
            "allocation": "uniform",
            "evaluate_tokens": 2048,
        },
    ),
    # An alignment of 12 heads is not searched for the best groups: that takes many minutes a layer.
    "minilm": (
        MINILM,
        {
            "ways": "neighbour-mean,qcqa,asymgqa,aligned+aligned,fold",
            "kv_ratios": "3/4,1/2,1/3",
            "window": 96,
            "measure_tokens": 384,
            "evaluate_tokens": 4096,
        },
    ),
}


def main() -> None:
    """Compare, print the table, put the page where it belongs."""
    parser = arguments(str(__doc__))
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--docs", type=Path, default=None, help="directory to copy pages to")
    options = parser.parse_args()
    work, docs = options.work / "pages", options.docs and options.docs.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(environment())
    models = {name: (fetch(MODELS[name][0]), MODELS[name][1]) for name in options.model or MODELS}
    texts = options.wikitext.resolve()
    os.chdir(work)
    for name in ("valid.txt", "test.txt"):
        _linked(Path(name), texts / name)
    for name, (model, how) in models.items():
        _linked(Path(model.name), model)
        made = gqakit.compare(model.name, f"compared-{name}", **SHARED, **how)
        measures = measures_named(made.cells[0].scores)
        title = f"{model.name}, {made.scored_on}, {made.seconds:,.0f} s here"
        table = Table(
            title, "checkpoint", "KV bytes/token", "of the source", *(each.title for each in measures)
        )
        for cell in made.cells:
            shown = (each.shown(cell.scores.get(each.name)) for each in measures)
            table.row(cell.name, f"{cell.kv_bytes:,}", f"{cell.kv_ratio:.1%}", *shown)
        if docs is not None:
            shutil.copyfile(made.page, docs / f"compare-{name}.html")


def _linked(link: Path, target: Path) -> None:
    if not link.exists():
        link.symlink_to(target)


if __name__ == "__main__":
    main()
