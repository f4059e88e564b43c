"""Key-driven attention against plain grouping: DINOv2-S on CIFAR-10 and Fashion-MNIST, several seeds.

    python benchmarks/key_driven.py [--dataset cifar10] [--fashion DIR] [--show]

Every cell is one `vision-train` run: 6 heads to 3 KV heads in each of 12 layers, uptraining towards the source's features,
then fine-tuning on classes, at equal steps, images and order. A seed draws the classifier and the order of images; the
images to train and to test on are the same for all. Windows matter to DGQA alone, so the others run once a seed. What is
"as published" has the behaviour of the paper's published code (arXiv 2408.08454) and is evaluated as that evaluates: batch
by batch.

CIFAR-10 comes from an .npz with `images` and `labels`; Fashion-MNIST as the IDX files of Debian's `dataset-fashion-mnist`
(`apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DIR`, where DIR is `--fashion`).

Finished cells are kept in the scratch directory and an interrupted one goes on, so the same command finishes the
table; all methods of a seed come before the next seed. Two processes, one a dataset, may run side by side. `--show` prints
and draws what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import Table, environment
from gqakit.cli.console import Screen
from gqakit.data.labelled import LabelledImages, read_labelled_images
from gqakit.data.samples import Images
from gqakit.evaluation.drawing import axes_of, colours_of, figure
from gqakit.key_driven.options import VisionOptions
from gqakit.key_driven.train import vision_train
from zoo import DINOV2_SMALL, fetch

DATASETS = {"cifar10": "CIFAR-10", "fashion": "Fashion-MNIST"}
SIZES = {"cifar10": 42, "fashion": 28}
"""Pixels, where nothing is said: patches have 14, so that attention is over 10 positions and over 5."""
CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-9000.npz"
WINDOWS = (100, 300, 500)
METHODS = ("gqa", "kdgqa", "dgqa-ema", "dgqa-diff", "pgqa", "fold")
PUBLISHED_WINDOW = 300
SETTINGS = (
    *("image_size", "batch_size", "uptrain_steps", "max_steps", "samples", "held_out"),
    *("uptrain_learning_rate", "learning_rate"),
)
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    method: str
    window: int = 0
    as_published: bool = False

    @property
    def name(self) -> str:
        """As the table calls it."""
        window = f", window {self.window}" if self.window else ""
        return f"{self.method}{window}{', as published' if self.as_published else ''}"


OURS = [
    Variant(method, window)
    for method in METHODS
    for window in (WINDOWS if method.startswith("dgqa") else (0,))
]
PUBLISHED = [
    Variant(method, PUBLISHED_WINDOW if method.startswith("dgqa") else 0, True)
    for method in ("kdgqa", "dgqa-ema", "dgqa-diff", "pgqa")
]


@dataclass(frozen=True)
class Cell:
    """One run that is to be made or was made."""

    dataset: str
    variant: Variant
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results, and that of its directory."""
        name = self.variant.name.replace(", ", "-").replace(" ", "")
        return f"{self.dataset}-{name}-seed{self.seed}"


class Bench:
    """The cells, and what came of those that are finished: a file a dataset, so that two processes may share them out."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.settings: dict[str, dict[str, Any]] = {d: self._settings(d) for d in chosen.dataset}
        self.kept: dict[str, dict[str, dict[str, Any]]] = {d: self._kept(d) for d in chosen.dataset}

    def _settings(self, dataset: str) -> dict[str, Any]:
        given = {name: getattr(self.chosen, name) for name in SETTINGS}
        return {**given, "image_size": self.chosen.image_size or SIZES[dataset]}

    def _path(self, dataset: str) -> Path:
        return self.chosen.work / f"key_driven-{dataset}.json"

    def _kept(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Finished cells of a dataset by name."""
        path = self._path(dataset)
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings[dataset]:
            raise SystemExit(f"{path} was made with {found['settings']}; give those, or another --work")
        return found["cells"]

    def wanted(self) -> Iterator[Cell]:
        """What is asked for, in the order in which it is run."""
        for dataset in self.chosen.dataset:
            for variants in (OURS, PUBLISHED):
                for seed in self.chosen.seed:
                    yield from (Cell(dataset, v, seed) for v in variants if self._asked(v))

    def _asked(self, variant: Variant) -> bool:
        chosen = self.chosen
        if variant.as_published and chosen.ours_only:
            return False
        return variant.method in chosen.method and (not variant.window or variant.window in chosen.window)

    def run(self) -> None:
        """Everything that is missing."""
        for cell in self.wanted():
            if cell.key not in self.kept[cell.dataset]:
                self._run(cell)
                print(f"{cell.key}: {self.kept[cell.dataset][cell.key]['accuracy']:.1%}", flush=True)

    def _run(self, cell: Cell) -> None:
        variant = cell.variant
        out = self.chosen.work / "runs" / cell.key
        out.parent.mkdir(parents=True, exist_ok=True)
        train, test = self.images[cell.dataset]
        options = VisionOptions(
            method=variant.method,
            window=variant.window or PUBLISHED_WINDOW,
            as_published=variant.as_published,
            seed=cell.seed,
            save_steps=100,
            images=train,
            test_images=test,
            device="cpu",
            overwrite=True,
            **self.settings[cell.dataset],
        )
        used = time.process_time()
        result = vision_train(
            fetch(DINOV2_SMALL),
            out,
            options=options,
            progress=Screen().progress,
        )
        cells = self.kept[cell.dataset]
        cells[cell.key] = {
            "accuracy": result.in_training["accuracy"],
            "loss": result.in_training["loss"],
            "frozen_accuracy": result.accuracy,
            "features": result.features,
            "allocation": result.allocation,
            "seconds": result.seconds,
            "processor_seconds": time.process_time() - used,
            "environment": environment(),
        }
        partial = self._path(cell.dataset).with_suffix(".partial")
        partial.write_text(json.dumps({"settings": self.settings[cell.dataset], "cells": cells}, indent=1))
        partial.replace(self._path(cell.dataset))
        shutil.rmtree(out)

    @cached_property
    def images(self) -> dict[str, tuple[LabelledImages, LabelledImages | None]]:
        """For each dataset what to train on and what to test on; None holds some of the first out."""
        found: dict[str, tuple[LabelledImages, LabelledImages | None]] = {}
        if "cifar10" in self.chosen.dataset:
            found["cifar10"] = read_labelled_images(self.chosen.images), None
        if "fashion" in self.chosen.dataset:
            folder = self.chosen.fashion
            found["fashion"] = read_idx(folder, "train"), read_idx(folder, "t10k")
        return found

    def show(self) -> None:
        """The tables and the plot of what is finished."""
        print(environment())
        rows = [*OURS, *PUBLISHED]
        for dataset in self.chosen.dataset:
            done = [v for v in rows if self.of(dataset, v)]
            if not done:
                continue
            settings = self.settings[dataset]
            print(f"\n{DATASETS[dataset]}: {settings}")
            table = Table(
                f"{DATASETS[dataset]}: accuracy on {settings['held_out']:,} images not trained on",
                *("method", "mean", "spread", "least to most", "seeds", "− gqa, same seeds", "cross-entropy"),
                *("frozen", "distance from the source's features", "unequal layers", "processor min"),
            )
            for variant in done:
                table.row(variant.name, *self._columns(dataset, variant))
        self._plot(rows)

    def of(self, dataset: str, variant: Variant) -> dict[int, dict[str, Any]]:
        """Finished cells by seed."""
        kept = self.kept[dataset]
        cells = {seed: kept.get(Cell(dataset, variant, seed).key) for seed in self.chosen.seed}
        return {seed: cell for seed, cell in cells.items() if cell is not None}

    def _columns(self, dataset: str, variant: Variant) -> Iterator[str]:
        cells = self.of(dataset, variant)
        plain = self.of(dataset, OURS[0])
        found = [cell["accuracy"] for cell in cells.values()]
        yield f"{statistics.mean(found):.1%}"
        yield f"{100 * statistics.stdev(found):.1f}" if len(found) > 1 else ""
        yield f"{min(found):.1%} to {max(found):.1%}"
        yield str(len(found))
        pairs = [
            100 * (cell["accuracy"] - plain[seed]["accuracy"])
            for seed, cell in cells.items()
            if seed in plain
        ]
        spread = f" ± {statistics.stdev(pairs):.1f}" if len(pairs) > 1 else ""
        yield "" if variant == OURS[0] or not pairs else f"{statistics.mean(pairs):+.1f}{spread}"
        yield f"{statistics.mean(cell['loss'] for cell in cells.values()):.3f}"
        yield f"{statistics.mean(cell['frozen_accuracy'] for cell in cells.values()):.1%}"
        pairs_of_features = zip(*(cell["features"] for cell in cells.values()), strict=True)
        yield " → ".join(f"{statistics.mean(each):.3f}" for each in pairs_of_features)
        unequal = [sum(len(set(a)) > 1 for a in cell["allocation"]) for cell in cells.values()]
        yield f"{statistics.mean(unequal):.1f} of {len(next(iter(cells.values()))['allocation'])}"
        yield f"{statistics.mean(cell['processor_seconds'] for cell in cells.values()) / 60:.1f}"

    def _plot(self, rows: Sequence[Variant]) -> None:
        datasets = [d for d in self.chosen.dataset if any(self.of(d, v) for v in rows)]
        if not datasets:
            return
        colours = colours_of(METHODS)
        made_by = "benchmarks/key_driven.py: DINOv2-S, 6 heads to 3, three seeds of each, best first; fainter: as published"
        with figure(self.chosen.plot, columns=len(datasets), size=(7.2, 4.8), made_by=made_by) as drawn:
            for axes, dataset in zip(np.atleast_1d(drawn), datasets, strict=True):
                reached = {
                    v: [100 * cell["accuracy"] for cell in self.of(dataset, v).values()]
                    for v in rows
                    if self.of(dataset, v)
                }
                done = sorted(reached, key=lambda v: -statistics.mean(reached[v]))
                for place, variant in enumerate(done):
                    found, colour = reached[variant], colours[variant.method]
                    strength = 0.45 if variant.as_published else 1.0
                    axes.plot(
                        found, [place] * len(found), "o", color=colour, alpha=0.6 * strength, markersize=4
                    )
                    mean = {"color": colour, "alpha": strength, "markersize": 14, "markeredgewidth": 2.5}
                    axes.plot(statistics.mean(found), place, "|", **mean)
                axes.set_yticks(range(len(done)), [variant.name for variant in done], fontsize=7)
                axes.invert_yaxis()
                axes_of(axes, DATASETS[dataset], "accuracy (%): seeds, and their mean", "")
        print(f"\nplot: {self.chosen.plot}")


def read_idx(folder: Path, part: str) -> LabelledImages:
    """Fashion-MNIST's images and labels, from gzipped IDX files anywhere below a folder."""
    pixels, labels = (
        _idx(folder, f"{part}-{name}.gz") for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images = np.repeat(pixels[..., None], 3, axis=-1)
    return LabelledImages(Images(f"Fashion-MNIST {part}", images), labels.astype(np.int64), FASHION)


def _idx(folder: Path, name: str) -> np.ndarray:
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise SystemExit(f"{folder} holds no {name}; see --help for where it comes from")
    content = gzip.decompress(path.read_bytes())
    dimensions = content[
        3
    ]  # two bytes 0, the type (8: bytes), the number of dimensions, then each as 4 bytes
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def arguments() -> argparse.ArgumentParser:
    """Everything one can choose."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=CIFAR, help="CIFAR-10 as an .npz (%(default)s)")
    parser.add_argument("--fashion", type=Path, default=Path("benchmarks/out/fashion-mnist"))
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"), help="scratch directory")
    parser.add_argument(
        "--plot", type=Path, help="where the plot goes (key-driven.png in the scratch directory)"
    )
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--window", nargs="+", type=int, default=list(WINDOWS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ours-only", action="store_true", help="leave out what is as published")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--image-size", type=int, help=f"pixels (default: {SIZES})")
    parser.add_argument("--samples", type=int, default=2400, help="images to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="images to test on")
    parser.add_argument("--batch-size", type=int, default=6)
    parser.add_argument("--uptrain-steps", type=int, default=160)
    parser.add_argument("--max-steps", type=int, default=400)
    parser.add_argument("--uptrain-learning-rate", type=float, default=5e-5)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0 for PyTorch's choice")
    return parser


def main() -> None:
    """Run what is missing, then print."""
    chosen = arguments().parse_args()
    chosen.plot = chosen.plot or chosen.work / "key-driven.png"
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    bench = Bench(chosen)
    if not chosen.show:
        bench.run()
    bench.show()


if __name__ == "__main__":
    main()
