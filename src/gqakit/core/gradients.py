"""What converting a layer does to a model's output, to second order, from the gradients of one backward pass.

When a layer is changed a little its model's output moves by some `δ`, and what that costs is a quadratic form of `δ`: the
divergence of predictions, or a squared error. `½ E[(s · δ)²]` is that form for a random `s` whose second moment is the
form's matrix. For a divergence that is the gradient of `log p(y)` with `y` drawn from the model's own predictions, as their
second moment is the Fisher information (Martens, "New insights and perspectives on the natural gradient method", JMLR 2020,
section 5). One backward pass carries `s` to every layer at once, where it meets the errors that are made there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from gqakit.core.merging.base import MergeRule, residual
from gqakit.core.statistics import HeadStats


@dataclass(frozen=True)
class LayerGradients:
    """What a backward pass knows of one layer, for what its key heads and value heads cost when they are changed.

    Query head `q` delivers `z_q = Σ_t p_t v_t` (before the output projection), where the gradient is `u_q`; its logits
    `l_ts` have the gradients `a_ts`. Expectations are over batches; of each, sums over positions are taken.

    Attributes:
        value: `Σ_q E[Σ_t u_q u_qᵀ]` over the query heads of each KV head. That is `W_O[:,q]ᵀ F W_O[:,q]` with `F` the second
            moment of the gradient at what the layer puts out.
        query: `Σ_q E[Σ_ts a_ts² q_t q_tᵀ]` over the query heads of each KV head, scaled so that `q · k` is the logit.
        key: the average of `k kᵀ` over the keys of all heads side by side as they enter RoPE, weighed by `Σ_q Σ_t a_ts²`.
        distances: share of `a_ts²` that falls on each distance; None where positions do not rotate.
    """

    value: Float[Tensor, "kv_heads head_dim head_dim"]
    query: Float[Tensor, "kv_heads head_dim head_dim"]
    key: Float[Tensor, "all_channels all_channels"]
    distances: Float[Tensor, "kv_heads window"] | None = None


def key_loss(stats: HeadStats, gradients: LayerGradients) -> HeadStats:
    """The key heads as the output feels their errors: an error costs half the mean square of what it adds to the score.

    Before a normalisation that nothing is mixed through, keys stand for what it makes of them.

    Args:
        stats: of the same heads, which merge rules work on.
        gradients: of the same layer.
    """
    heads, width = stats.gram.shape[:2]
    gram = gradients.key.double().reshape(heads, width, heads, width)
    return replace(
        stats, gram=gram, metric=gradients.query.double() / 2, distances=gradients.distances, beyond=False
    )


def value_loss(stats: HeadStats, gradients: LayerGradients) -> HeadStats:
    """The value heads likewise."""
    return replace(stats, metric=gradients.value.double() / 2)


def merging_loss(
    loss: HeadStats, stats: HeadStats, group: Sequence[int], rule: MergeRule
) -> tuple[float, float]:
    """What merging a group loses, as `loss` counts, and its error, as `stats` does; the rule makes maps of `stats`."""
    if len(group) == 1:
        return 0.0, 0.0
    merged = stats.select(group)
    merge = rule.merge(merged)
    return residual(loss.select(group), merge), residual(merged, merge)
