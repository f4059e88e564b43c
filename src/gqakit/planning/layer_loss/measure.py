"""The loss of converting one layer alone, for every choice that a plan could make."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.apply import apply_grouping, in_source_shape
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES
from gqakit.errors import GqakitError
from gqakit.models.inspection import open_model
from gqakit.models.layers import tensors_of_layer
from gqakit.models.load import auto_class, load
from gqakit.planning.candidates import LayerStats, SlotChoices
from gqakit.planning.layer_loss.file import Key, LossFile
from gqakit.planning.layer_loss.probe import LayerProbe
from gqakit.progress import Reporter


def what_is_measured(source: Checkpoint) -> str:
    """What `LayerProbe.divergence` gives for a model, in words."""
    without_head = auto_class(source.config) == "AutoModel"
    return "relative squared error of the output" if without_head else "KL to the source, nats"


@dataclass(frozen=True)
class Bench:
    """What it takes to measure losses, in this process or in another.

    Attributes:
        model: directory of the source.
        moments: the calibration; None for a weights-only plan.
        merge: name of the merge rule.
        batches: what it is run on.
        stacks: what is converted.
        device: "cpu" or "cuda".
        threads: of torch; 0 leaves it alone.
    """

    model: Path
    moments: Path | None
    merge: str
    batches: list[dict[str, Any]]
    stacks: tuple[str, ...]
    device: str
    threads: int = 0


class Prober:
    """A source model, probed layer by layer."""

    def __init__(self, bench: Bench) -> None:
        if bench.threads:
            torch.set_num_threads(bench.threads)
        self.source, self.spec = open_model(str(bench.model), bench.stacks)
        self.moments = MomentsFile.open(bench.moments) if bench.moments else None
        self.rule = RULES[bench.merge]
        model = load(bench.model, dtype=torch.float32).to(bench.device)  # pyright: ignore[reportArgumentType]
        self.probe = LayerProbe(model, self.spec, bench.batches)

    def measure(self, layer: int, keys: Sequence[Key]) -> Iterator[tuple[Key, float]]:
        """The loss of each choice for one layer."""
        stats = LayerStats.read(self.source, self.spec, self.moments, layer)
        for key in keys:
            tensors = _converted(stats, key, self.rule.name)
            yield key, self.probe.divergence(layer, tensors)


def _converted(stats: LayerStats, key: Key, merge: str) -> dict[str, Tensor]:
    """The layer's tensors after one choice, in the shapes of the source."""
    layer, side, labels = key
    rule = RULES[merge]
    chosen, same = Partition(labels), Partition.identity(len(labels))
    grouping = Grouping(same if side == "value" else chosen, same if side == "key" else chosen)
    fixed = stats.spec.fixed_queries
    converted = apply_grouping(
        stats.weights, grouping, stats.key, stats.value, rule, rule, fixed_queries=fixed
    )
    return tensors_of_layer(stats.spec, layer, in_source_shape(converted, grouping, fixed_queries=fixed))


_prober: Prober | None = None


def _start(bench: Bench) -> None:
    global _prober
    _prober = Prober(bench)


def _measure(layer: int, keys: Sequence[Key]) -> list[tuple[Key, float]]:
    assert _prober is not None
    return list(_prober.measure(layer, keys))


def measure_losses(
    bench: Bench, choices: Sequence[SlotChoices], losses: LossFile, workers: int, progress: Reporter
) -> list[Mapping[int, float]]:
    """What each choice of each slot loses: `KL(source ‖ model)` when nothing else is converted.

    Losses that the file knows are not measured again; new ones are written to it one by one.

    Args:
        bench: the model and the text.
        choices: what to measure.
        losses: where they are kept.
        workers: processes that share the layers; each loads the model.
        progress: see the package.

    Raises:
        PlanError: when the output is not finite.
    """
    wanted: list[list[tuple[int, Key]]] = [
        [(count, (slot.layer, slot.side, choice.partition.labels)) for count, choice in slot.by_count.items()]
        for slot in choices
    ]
    measure_keys(bench, [key for slot in wanted for _, key in slot], losses, workers, progress)
    return [{count: losses.known.get(key, 0.0) for count, key in slot} for slot in wanted]


def measure_keys(
    bench: Bench, keys: Iterable[Key], losses: LossFile, workers: int, progress: Reporter
) -> None:
    """`measure_losses` for any groupings of single layers; what was found is then in `losses.known`."""
    missing: dict[int, list[Key]] = {}
    for key in dict.fromkeys(keys):
        if key not in losses.known and not Partition(key[2]).is_identity:
            missing.setdefault(key[0], []).append(key)
    total = sum(map(len, missing.values()))
    if total:
        with progress("measure", total, "choices") as advance:
            for key, loss in _run(bench, missing, workers):
                losses.add(key, loss)
                advance(1)


def _run(bench: Bench, missing: Mapping[int, list[Key]], workers: int) -> Iterator[tuple[Key, float]]:
    layers = sorted(missing)
    if workers == 1:
        prober = Prober(bench)
        for layer in layers:
            yield from prober.measure(layer, missing[layer])
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, context, _start, (bench,)) as pool:
        pending = [pool.submit(_measure, layer, missing[layer]) for layer in layers]
        try:
            for future in pending:
                yield from future.result()
        except BrokenProcessPool as error:
            raise GqakitError(
                f"one of {workers} worker processes died, probably for want of memory (each loads the model); what was "
                "measured is kept: run again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
