"""An experiment of trials from its command line to its tables and its plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import Table, environment
from gqakit.evaluation.drawing import axes_of, colours_of, figure
from trials import SOURCE, WHOLE, Cells, Subject, Ways, run

UNITS = {
    "accuracy": "accuracy (%)",
    "cross-entropy": "cross-entropy (nats per token)",
    "loss per token": "loss (nats per token)",
}
"""How a plot calls the scores of subjects."""


def add_arguments(parser: argparse.ArgumentParser, subjects: Sequence[str], epochs: int) -> None:
    """What every experiment can be told."""
    parser.add_argument("--subject", action="append", choices=tuple(subjects), help="which (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=epochs, help="of training after the conversion")
    parser.add_argument("--show", action="store_true", help="run nothing, print what is finished")


def experiment(
    title: str,
    options: argparse.Namespace,
    make: Mapping[str, Callable[[Path], Subject]],
    ways: Ways,
    sizes: Mapping[str, Sequence[str]],
    baseline: str,
) -> None:
    """Run what is not finished, unless asked only to show, and print.

    Args:
        title: names the files of cells and plots. options: as `add_arguments` has them.
        make: subjects by name, in a scratch directory. ways, sizes: what is compared, at which sizes of a subject.
        baseline: the way that others are compared with.
    """
    print(environment(), flush=True)
    for name in options.subject or sizes:
        work = options.work / name
        work.mkdir(parents=True, exist_ok=True)
        subject = make[name](work)
        settings = {**subject.settings, "epochs": options.epochs}
        cells = Cells(work / f"{title}.json", settings)
        if not options.show:
            run(cells, subject, ways, sizes[name], options.seeds, options.epochs, work)
        print(f"\n{subject.name}: {', '.join(f'{key} {value}' for key, value in settings.items())}")
        tables(cells, subject, ways, sizes[name], options.epochs, baseline)
        plot(work / f"{title}-{name}.png", cells, subject, ways, sizes[name], options.epochs)


def tables(
    cells: Cells, subject: Subject, ways: Ways, sizes: Sequence[str], epochs: int, baseline: str
) -> None:
    """Mean ± standard deviation over seeds after each epoch, and the difference to a baseline, seed by seed."""
    better = "more" if subject.higher else "less"
    after = [f"after {epoch}" for epoch in range(1, epochs + 1)]
    table = Table(
        f"{subject.name}: {subject.score} ({better} is better)",
        "KV bytes", "way", "kept", "seeds", "before training", *after, f"last, against {baseline}",
    )  # fmt: skip
    rows = [(WHOLE, SOURCE), *((size, way) for size in sizes for way in ways)]
    for size, way in rows:
        made = cells.of(subject.name, way, size)
        found = [cell for cell in made if cell.curve]
        if not found:
            if made:
                table.row(size, way, "has no such size", *["-"] * (epochs + 3))
            continue
        scores = [[cell.curve[epoch][subject.score] for cell in found] for epoch in range(epochs + 1)]
        others = {cell.seed: cell for cell in cells.of(subject.name, baseline, size) if cell.curve}
        gains = [
            cell.curve[-1][subject.score] - others[cell.seed].curve[-1][subject.score]
            for cell in found
            if cell.seed in others
        ]
        kept = mean(cell.kept for cell in found)
        against = spread(gains, "+") if gains and way != baseline else ""
        table.row(size, way, f"{kept:.3f}", str(len(found)), *map(spread, scores), against)
    seconds = sum(cell.seconds for cell in cells.found.values() if cell.subject == subject.name)
    print(f"\n{seconds:,.0f} s of processor time in these cells.")


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation of a sample."""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{deviation}"


def plot(path: Path, cells: Cells, subject: Subject, ways: Ways, sizes: Sequence[str], epochs: int) -> None:
    """Scores against KV bytes before training and after it, with bars of one deviation."""
    if not any(key[0] == subject.name for key in cells.found):
        return
    when = {"before training": 0, f"after {epochs} epoch{'s' if epochs > 1 else ''}": epochs}
    made_by = (
        f"benchmarks/{path.stem.split('-')[0]}_experiment.py: mean and one standard deviation over seeds"
    )
    with figure(path, columns=2, size=(7.2, 3.6), made_by=made_by, alike=True) as axes:
        for place, (title, epoch) in zip(axes, when.items(), strict=True):
            _draw(place, cells, subject, ways, sizes, epoch)
            unit = UNITS.get(subject.score, subject.score) if place is axes[0] else ""
            axes_of(place, f"{subject.name}, {title}", "KV bytes kept, share of the source's", unit)
        lines, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(lines, names, loc="outside right upper", frameon=False, fontsize=8)


def _draw(axes: Any, cells: Cells, subject: Subject, ways: Ways, sizes: Sequence[str], epoch: int) -> None:
    for number, (way, colour) in enumerate(colours_of(list(ways)).items()):
        points: list[tuple[float, float, float]] = []
        for size in sizes:
            scores = [c.curve[epoch][subject.score] for c in cells.of(subject.name, way, size) if c.curve]
            if scores:
                deviation = stdev(scores) if len(scores) > 1 else 0.0
                points.append((float(Fraction(size)) + 0.004 * number, mean(scores), deviation))
        if points:
            x, y, error = zip(*sorted(points), strict=True)
            axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label=way, color=colour)
