"""What a plan is asked for, and what that leaves each layer to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from gqakit.core.budget import Budget
from gqakit.core.merging import RULES
from gqakit.errors import BudgetError, UsageError, unknown_name
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import GroupingMethod, Sizes
from gqakit.models.engines import ENGINES, check_engine
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import Allocation, Loss
from gqakit.planning.candidates import Side, SlotShape


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made by.

    Attributes:
        method, merge, allocation: names; allocation "auto" is what suits the method and the format.
        format: "auto" is `uniform` wherever the groups turn out to allow it.
        seed: of everything random.
        kv_maps: one map for keys and values of a layer, or one for each, budgeted apart too.
        cardinality: whether groups may differ in size.
        max_group_size: at most so many query heads read one KV head.
        kv_multiple_of: every layer keeps a multiple of so many KV heads (tensor parallelism).
        engine: refuse what it cannot run; None for any.
        layer_loss: what the allocation weighs; "auto" is what it asks for, or the cheap stand-in for it.
        method_options, allocation_options: see the method and the allocation.
        stacks: in families with several kinds of attention layers, those to convert; () for those that generation caches,
            or all where none is.
    """

    method: str = "optimal"
    merge: str = "fold"
    allocation: str = "auto"
    format: Literal["auto", "uniform", "grouped"] = "auto"
    seed: int = 0
    kv_maps: Literal["shared", "separate"] = "shared"
    cardinality: Literal["arbitrary", "equal"] = "arbitrary"
    max_group_size: int | None = None
    kv_multiple_of: int = 1
    engine: str | None = None
    layer_loss: Literal["auto", "objective", "error", "measured"] = "auto"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    allocation_options: Mapping[str, Any] = field(default_factory=dict)
    stacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("method", self.method, METHODS),
            ("merge rule", self.merge, RULES),
            ("allocation", self.allocation, (*ALLOCATIONS, "auto")),
            ("format", self.format, ("auto", "uniform", "grouped")),
            ("kv_maps", self.kv_maps, ("shared", "separate")),
            ("cardinality", self.cardinality, ("arbitrary", "equal")),
            ("layer loss", self.layer_loss, ("auto", "objective", "error", "measured")),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if self.engine is not None and self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        for name in ("max_group_size", "kv_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} must be at least 1")
        if self.format == "uniform" and self.kv_maps == "separate":
            raise UsageError(
                "format uniform has one map for keys and values; separate maps need --format grouped (or auto)"
            )
        _ = self.grouping_method, ALLOCATIONS["uniform" if self.allocation == "auto" else self.allocation]
        if self.allocation != "auto":
            _ = ALLOCATIONS[self.allocation].configured(self.allocation_options)

    @cached_property
    def grouping_method(self) -> GroupingMethod:
        """The method, configured."""
        return METHODS[self.method].configured(self.method_options)

    @property
    def equal(self) -> bool:
        """Whether all groups of a layer must have the same size."""
        return self.format == "uniform" or self.cardinality == "equal"

    def check_engine(self, family: str) -> None:
        """Raise `UsageError` where a plan for a model of this family may come out as none for the engine."""
        if self.engine is not None:
            separate = self.kv_maps == "separate"
            formats = ("uniform", "grouped") if self.format == "auto" and not separate else (self.format,)
            check_engine(self.engine, formats, separate, family)

    @property
    def sides(self) -> tuple[Side, ...]:
        """What gets a partition of its own in each layer."""
        return ("both",) if self.kv_maps == "shared" else ("key", "value")

    def allocation_for(self, budget: Budget | None, measurable: bool) -> Allocation:
        """The allocation. "auto" is what the method is meant for, but `uniform` where a budget is in heads a layer, where
        the format wants the same number in every layer, and where losses that are not to be had would have to be measured
        (what stands in for them is no sure gain).
        """
        if self.allocation != "auto":
            return ALLOCATIONS[self.allocation].configured(self.allocation_options)
        meant = ALLOCATIONS[self.grouping_method.allocation]
        a_layer = budget is not None and budget.kv_heads is not None
        unknown = meant.loss == "measured" and self.layer_loss == "auto" and not measurable
        if a_layer or self.format == "uniform" or unknown:
            return ALLOCATIONS["uniform"]
        return meant.configured(self.allocation_options)

    def loss_for(self, allocation: Allocation, measurable: bool) -> Loss:
        """What that allocation weighs: what is asked for, else its own choice, with a stand-in for a measurement.

        Raises:
            UsageError: measured losses are asked for where nothing can be measured.
        """
        if allocation.loss == "none":
            return "none"
        if self.layer_loss == "measured" and not measurable:
            raise UsageError("layer loss 'measured' needs text to run the model on")
        if self.layer_loss != "auto":
            return self.layer_loss
        return "error" if allocation.loss == "measured" and not measurable else allocation.loss


def slot_shapes(spec: ModelSpec, options: PlanOptions) -> list[SlotShape]:
    """Every slot of a model with the numbers of heads that the constraints leave it.

    Raises:
        BudgetError: when they leave none.
    """
    shapes: list[SlotShape] = []
    for layer in range(spec.num_layers):
        for side in options.sides:
            heads = (spec.value_heads if side == "value" else spec.key_heads)[layer]
            counts = _allowed(spec, heads, options)
            if not counts:
                raise BudgetError(
                    f"layer {spec.name(layer)}: none of 1 to {heads} KV heads is a multiple of {options.kv_multiple_of} "
                    f"in groups of at most {options.max_group_size or 'any'} query heads; loosen --kv-multiple-of or "
                    "--max-group-size"
                )
            shapes.append(SlotShape(layer, side, heads, counts))
    return shapes


def _allowed(spec: ModelSpec, heads: int, options: PlanOptions) -> dict[int, Sizes]:
    readers = spec.num_heads // heads
    most = None if options.max_group_size is None else options.max_group_size // readers
    if most == 0:
        raise BudgetError(
            f"--max-group-size {options.max_group_size}: already {readers} query heads read each of the {heads} KV heads"
        )
    only = options.grouping_method.only_count
    return {
        count: sizes
        for count in range(1, heads + 1)
        if count % options.kv_multiple_of == 0 and (only is None or count in (only, heads))
        if (sizes := Sizes.of(heads, count, equal=options.equal, most=most))
    }


def check_budget(spec: ModelSpec, budget: Budget, options: PlanOptions, measurable: bool) -> list[SlotShape]:
    """The slots, after making sure that some way to spend the budget is within method, format and constraints.

    Raises:
        BudgetError: when there is none; says what would be.
    """
    if options.format == "uniform" and not spec.can_be_uniform:
        raise BudgetError(
            f"format uniform: the {spec.family.model_type} architecture has as many KV heads as query heads, so no stock "
            "code runs fewer; use --format grouped"
        )
    shapes = slot_shapes(spec, options)
    allocation = options.allocation_for(budget, measurable)
    tied = options.format == "uniform"
    if options.equal and budget.kv_heads is not None and budget.kv_heads not in shapes[0].counts:
        possible = ", ".join(str(n) for n in shapes[0].counts)
        raise BudgetError(
            f"equal groups are asked for, and {shapes[0].num_heads} KV heads do not divide into {budget.kv_heads}; "
            f"possible: --kv-heads {possible}. Or --format grouped with --cardinality arbitrary, which takes any number"
        )
    common = set(shapes[0].counts).intersection(*(shape.counts for shape in shapes)) if tied else None
    smallest = sum(min(common or shape.counts) * shape.slot.width for shape in shapes)
    whole = sum(shape.num_heads * shape.slot.width for shape in shapes)
    if common is not None and not common:
        raise BudgetError(
            "format uniform needs a number of KV heads that every layer can have; there is none"
        )
    if smallest > whole * budget.kv_ratio + 1e-6:
        raise BudgetError(
            f"{budget.asked} is a kv_ratio of {budget.kv_ratio:.4g}; the smallest that can be met is "
            f"{smallest / whole:.4f} within these constraints"
        )
    only = options.grouping_method.only_count
    if only is not None and allocation.name == "uniform":
        fitting = [
            n for n in range(1, spec.key_heads[0] + 1) if n <= spec.key_heads[0] * budget.kv_ratio + 1e-6
        ]
        if max(fitting) != only:
            raise BudgetError(
                f"method {options.method} keeps one KV head a layer, the budget ({budget.asked}) leaves {max(fitting)}; "
                f"ask for --kv-heads 1 (kv_ratio {1 / spec.key_heads[0]:.4g}) or another method"
            )
    return shapes
