"""Is a value width that is no multiple of the head width worth having?

    python benchmarks/value_width.py

SmolLM2-135M-Instruct, WikiText-2, keys untouched. A layer may keep `g` value heads of width d (what gqakit converts to), or
one latent of any width `r` from which every query head reads through a map of its own: the best of that rank in the
same metric. No engine runs the second; it is tried by writing the rank-reduced value weights at full size, which
computes the same. Widths are spent over the layers evenly, or by knapsack on measured losses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from common import Table, arguments, environment, plan_within
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.linalg import eigh
from gqakit.core.statistics import value_stats
from gqakit.core.weighting import roots, weighted_gram
from gqakit.evaluation.language import score_language
from gqakit.models.layers import tensors_of_layer
from gqakit.models.load import load
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import LayerEntry, pick
from gqakit.planning.layer_loss.probe import LayerProbe
from gqakit.planning.options import BudgetOptions, PlanOptions
from methods_table import Scored
from workbench import Workbench

STEP = 32


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    scored = Scored(Workbench.on_smollm2(options.wikitext, options.work))
    bench, spec = scored.bench, scored.bench.spec
    print(environment())
    whole = spec.key_heads[0] * spec.head_dim
    widths = [*range(STEP, whole + 1, STEP)]
    model = load(bench.source.path, dtype=torch.float32)
    probe = LayerProbe(model, spec, bench.windows("valid", 3, 512))
    entries: list[LayerEntry] = []
    for layer in range(spec.num_layers):
        losses = [probe.divergence(layer, reduced(scored, layer, width)) for width in widths[:-1]]
        entries.append(LayerEntry(f"values of layer {layer}", whole, 1, tuple(widths), (*losses, 0.0)))
    table = Table("Values alone: perplexity (KL to the source)", "value bytes kept", "how", "8 x 512")
    for name, ratio in (("5/6", 5 / 6), ("2/3", 2 / 3), ("1/2", 1 / 2), ("1/3", 1 / 3)):
        even = [max(w for w in widths if w <= whole * ratio + 1e-6)] * spec.num_layers
        spent = pick(ALLOCATIONS["knapsack"].front(entries, tied=False, rng=random.Random(0)), entries, ratio)
        step = spec.head_dim // STEP
        multiples = [
            LayerEntry(s.name, whole, 1, s.counts[step - 1 :: step], s.losses[step - 1 :: step])
            for s in entries
        ]
        whole_heads = pick(
            ALLOCATIONS["knapsack"].front(multiples, tied=False, rng=random.Random(0)), multiples, ratio
        )
        for how, chosen in (
            ("one latent, same width in every layer", even),
            ("one latent, knapsack over multiples of the head width", whole_heads.counts),
            (f"one latent, knapsack over multiples of {STEP}", spent.counts),
        ):
            table.row(name, how, score(scored, model, chosen))
    table = Table("Value heads of width d for comparison", "value bytes kept", "how", "8 x 512")
    for row in head_rows(scored):
        table.row(*row)


def reduced(scored: Scored, layer: int, width: int) -> dict[str, torch.Tensor]:
    """The layer's tensors with all its value heads read from one latent of this width."""
    bench = scored.bench
    weights = bench.source.layer(layer)
    stats = value_stats(weights, scored.statistics.layer(layer))
    heads, d = stats.gram.shape[:2]
    root, inverse = roots(stats.metric)
    _, vectors = eigh(weighted_gram(stats.gram, root))
    leading = vectors[:, -width:].reshape(heads, d, width)
    keep = (inverse @ leading).reshape(heads * d, width) @ (root @ leading).reshape(heads * d, width).T
    rows = weights.value.augmented().double().flatten(0, 1)
    value = Projection.from_augmented(
        (keep @ rows).float().unflatten(0, (heads, d)), weights.value.bias is not None
    )
    changed = AttentionWeights(weights.query, weights.key, value, weights.output)
    return tensors_of_layer(bench.spec, layer, changed)


def score(scored: Scored, model: torch.nn.Module, widths: tuple[int, ...] | list[int]) -> str:
    """Perplexity of the model with these widths."""
    whole = scored.bench.spec.key_heads[0] * scored.bench.spec.head_dim
    with torch.inference_mode():
        for layer, width in enumerate(widths):
            tensors = reduced(scored, layer, width) if width < whole else original(scored, layer)
            for name, tensor in tensors.items():
                model.get_parameter(name).copy_(tensor)
    found = score_language(model, scored.windows[0], scored.bench.reference)
    return f"{found.perplexity:,.2f} ({found.kl:.3f})"


def original(scored: Scored, layer: int) -> dict[str, torch.Tensor]:
    """The layer as it was."""
    bench = scored.bench
    return tensors_of_layer(bench.spec, layer, bench.source.layer(layer))


def head_rows(scored: Scored) -> Iterator[tuple[str, str, str]]:
    """What whole value heads give at the same bytes, keys untouched."""
    bench = scored.bench
    planned = plan_within(
        bench.source,
        BudgetOptions(kv_ratio=1.0),
        PlanOptions(kv_maps="separate", allocation="knapsack"),
        scored.statistics,
        lambda: bench.measurement("fold"),
    )
    values = [each for each in planned.candidates if each.side == "value"]
    entries = [each.entry for each in values]
    for name, ratio in (("5/6", 5 / 6), ("2/3", 2 / 3), ("1/2", 1 / 2), ("1/3", 1 / 3)):
        front = ALLOCATIONS["knapsack"].front(entries, tied=False, rng=random.Random(0))
        kept = pick(front, entries, ratio).counts
        layers = tuple(
            layer.model_copy(
                update={"value": each.by_count[n].partition.labels, "key": tuple(range(len(layer.key)))}
            )
            for layer, each, n in zip(planned.plan.layers, values, kept, strict=True)
        )
        plan = planned.plan.model_copy(update={"layers": layers, "format": "grouped"})
        yield name, "heads of width d, knapsack", scored.score(plan)


if __name__ == "__main__":
    main()
