"""What is asked of a model, checked against it once: budget, options, and what they leave each layer to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property

from gqakit.calibration.store import StatisticsFile
from gqakit.core.budget import Budget, fits, resolve_budget
from gqakit.core.cache_types import CachePair
from gqakit.core.merging import RULES
from gqakit.errors import BudgetError, UsageError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import GroupingMethod, Sizes
from gqakit.models.engine_caches import FULL, as_engine_has_it
from gqakit.models.engines import check_engine
from gqakit.models.rounding import check_holds
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import Allocation, Loss
from gqakit.planning.candidates import EntryShape
from gqakit.planning.layer_features import Side
from gqakit.planning.options import MEASURING, BudgetOptions, PlanOptions


@dataclass(frozen=True)
class Request:
    """A budget and options for one model. All that can be wrong about them is said by `Request.check`.

    Attributes:
        spec: the model's attention.
        budget: resolved for it.
        options: method, merge rule, allocation, format, constraints, seed.
        measurable: whether there is something to run the model on, so that losses can be measured.
        predictable: whether there are statistics with gradients, so that losses can be predicted.
        workers: processes that plan layers side by side; they decide nothing.
    """

    spec: ModelSpec
    budget: Budget
    options: PlanOptions
    measurable: bool
    predictable: bool = False
    workers: int = 1

    @classmethod
    def check(
        cls,
        spec: ModelSpec,
        budget: BudgetOptions,
        options: PlanOptions,
        *,
        measurable: bool = False,
        predictable: bool = False,
    ) -> Request:
        """The request, after making sure that some way to spend the budget is within method, format and constraints.

        Raises:
            BudgetError: when there is none; says what would be. UsageError: options that do not go together.
        """
        if not budget.has_budget:
            raise UsageError("a budget is needed: `kv_ratio`, `kv_heads`, `kv_bytes_per_token` or `kv_gib`")
        types = options.kv_cache not in (FULL, "auto")
        whole = (
            replace(spec.cache, element_bytes=2) if types else spec.cache
        )  # types are counted against 16 bits
        try:
            resolved = resolve_budget(whole, **asdict(budget.part(BudgetOptions)))
        except ValueError as error:
            raise BudgetError(str(error)) from error
        request = cls(spec, resolved, options, measurable, predictable)
        request._check_engine()
        _ = request.method, request.loss, request.types
        if problem := next(request._problems(), None):
            raise BudgetError(problem)
        return request

    @cached_property
    def types(self) -> CachePair | None:
        """The types of the cache as the engine has them; None for 16 bits.

        Raises:
            UsageError: the engine has no such types, or they cannot hold such heads.
        """
        options = self.options
        if options.kv_cache == FULL:
            return None
        pair = as_engine_has_it(options.kv_cache, options.engine, self.spec.head_dim)
        check_holds(pair, self.spec)
        return pair

    @property
    def widths(self) -> tuple[int, int]:
        """What a key head and a value head take in the cache, in the smallest whole numbers."""
        if self.types is None:
            return 1, 1
        dim = self.spec.head_dim
        ratio = Fraction(self.types.key.nbytes(dim)) / Fraction(self.types.value.nbytes(dim))
        return ratio.numerator, ratio.denominator

    @property
    def types_ratio(self) -> float:
        """Bytes of the source's whole cache in the types, of those at 16 bits."""
        return (
            1.0
            if self.types is None
            else self.types.nbytes(1, 1, self.spec.head_dim) / (4 * self.spec.head_dim)
        )

    @property
    def share(self) -> float:
        """The share of the heads' bytes that the budget leaves, after what the types save."""
        if self.budget.kv_heads is not None:
            return self.budget.kv_ratio
        return min(1.0, self.budget.kv_ratio / self.types_ratio)

    @cached_property
    def method(self) -> GroupingMethod:
        """The grouping method, with its options.

        Raises:
            UsageError: a search option that neither the method nor the allocation has, or a value out of range.
        """
        method = METHODS[self.options.method]
        known, spending = method.options(), self._allocation.options()
        for name in self.options.search:
            if name not in known and name not in spending:
                raise UsageError(
                    f"`{name}` is no option of method {method.name} (which has {', '.join(known) or 'none'}) nor of "
                    f"allocation {self._allocation.name} (which has {', '.join(spending) or 'none'})"
                )
        return method.configured({n: v for n, v in self.options.search.items() if n in known})

    @cached_property
    def _allocation(self) -> Allocation:
        """The allocation before its options.

        "auto" is what the method is meant for, but `uniform` where a budget is in heads per layer, where the format wants
        the same number in every layer, and where it weighs losses that can be neither predicted nor measured (what stands
        in for them is no sure gain).
        """
        options = self.options
        if options.allocation != "auto":
            return ALLOCATIONS[options.allocation]
        if self.share >= 1:  # nothing is merged, so nothing need be weighed
            return ALLOCATIONS["uniform"]
        meant = ALLOCATIONS[METHODS[options.method].allocation]
        known = self.measurable or self.predictable
        unknown = meant.loss == "predicted" and options.layer_loss == "auto" and not known
        if self.budget.kv_heads is not None or options.format == "uniform" or unknown:
            return ALLOCATIONS["uniform"]
        return meant

    @cached_property
    def allocation(self) -> Allocation:
        """How the budget is spent, with its options."""
        known = self._allocation.options()
        return self._allocation.configured({n: v for n, v in self.options.search.items() if n in known})

    @cached_property
    def loss(self) -> Loss:
        """What the allocation weighs: what is asked for, else its own choice, with a stand-in for a prediction.

        Raises:
            UsageError: losses are asked for that can be neither measured nor predicted here.
        """
        wanted, asked = self.allocation.loss, self.options.layer_loss
        if wanted == "none":
            return "none"
        if asked in MEASURING and not self.measurable:
            raise UsageError(f"`layer_loss={asked}` needs text to run the model on")
        if asked in ("predicted", "corrected") and not self.predictable:
            raise UsageError(
                f"`layer_loss={asked}` needs calibration statistics with gradients, which `gqakit calibrate` takes where "
                "the model can be differentiated; or choose `layer_loss=measured`"
            )
        if asked != "auto":
            return asked  # pyright: ignore[reportReturnType]  # one of its choices
        if wanted != "predicted":
            return wanted
        if self.predictable:
            return "corrected" if self.measurable else "predicted"
        return "measured" if self.measurable else "error"

    @cached_property
    def shapes(self) -> Sequence[EntryShape]:
        """Every layer entry with the numbers of heads that the constraints leave it.

        Raises:
            BudgetError: when they leave none.
        """
        spec, options = self.spec, self.options
        sides: tuple[Side, ...] = ("both",) if options.kv_maps == "shared" else ("key", "value")
        shapes: list[EntryShape] = []
        for layer in range(spec.num_layers):
            for side in sides:
                heads = (spec.value_heads if side == "value" else spec.key_heads)[layer]
                counts = self._allowed(heads, spec.heads[layer] // heads)
                if not counts:
                    raise BudgetError(
                        f"layer {spec.name(layer)}: none of 1 to {heads} KV heads is a multiple of {options.kv_multiple_of} "
                        f"in groups of at most {options.max_group_size or 'any'} query heads; loosen `kv_multiple_of` or "
                        "`max_group_size`"
                    )
                shapes.append(EntryShape(layer, side, heads, counts, self.widths))
        return shapes

    def merges_behind_norm(self, statistics: StatisticsFile | None) -> bool:
        """Whether keys are merged as their normalisation leaves them: where the rule can do nothing before it.

        That takes statistics of keys there, and a checkpoint that only transformers need run.
        """
        options = self.options
        return (
            self.could_merge_behind_norm(statistics)
            and options.format != "uniform"
            and options.engine in (None, "transformers")
        )

    def could_merge_behind_norm(self, statistics: StatisticsFile | None) -> bool:
        """Whether it would with another format or engine."""
        rule = RULES[self.options.merge]
        return (
            self.spec.behind_norm is not None
            and rule.on(self.spec.channels) is not rule
            and statistics is not None
            and {"key", "query_heads"} <= statistics.kinds
        )

    def on(self, statistics: StatisticsFile | None) -> Request:
        """The same once there are statistics: without gradients nothing can be predicted."""
        known = statistics is not None and statistics.has_gradients
        return replace(self, predictable=self.predictable and known)

    @property
    def measured_candidates(self) -> int:
        """About how many candidates are measured: all, or the three of each entry that corrections were seen to look at."""
        every = sum(len(shape.counts) - 1 for shape in self.shapes)
        return {"measured": every, "corrected": min(every, 3 * len(self.shapes))}.get(self.loss, 0)

    @property
    def tied(self) -> bool:
        """Whether every layer must keep the same number of heads."""
        return self.options.format == "uniform"

    def with_one_count(self, counts: Sequence[int]) -> Sequence[EntryShape]:
        """The layer entries where the number of heads of each is settled."""
        return [replace(s, counts={n: s.counts[n]}) for s, n in zip(self.shapes, counts, strict=True)]

    def _allowed(self, heads: int, sharing: int) -> dict[int, Sizes]:
        """The numbers that this many KV heads may become; `sharing` query heads read each of them already."""
        options = self.options
        most = None if options.max_group_size is None else options.max_group_size // sharing
        if most == 0:
            raise BudgetError(
                f"`max_group_size={options.max_group_size}`: {sharing} query heads share each KV head already"
            )
        only = self.method.only_count
        return {
            count: sizes
            for count in range(1, heads + 1)
            if count % options.kv_multiple_of == 0 and (only is None or count in (only, heads))
            if (sizes := Sizes.of(heads, count, equal=options.equal, most=most))
        }

    def _check_engine(self) -> None:
        options = self.options
        if options.engine is not None:
            separate = options.kv_maps == "separate"
            either = options.format == "auto" and not separate
            formats = ("uniform", "grouped") if either else (options.format,)
            family, tied = self.spec.family.model_type, self.spec.tied
            check_engine(options.engine, formats, separate, family, tied=tied)

    def _problems(self) -> Iterator[str]:
        """Why no plan can be made; only the first is reported."""
        spec, options, budget = self.spec, self.options, self.budget
        if options.format == "uniform" and not spec.can_be_uniform:
            yield (
                f"`format=uniform`: the {spec.family.model_type} architecture has as many KV heads as query heads, so no "
                "stock code runs fewer; use `format=grouped`"
            )
        shapes = self.shapes
        if options.equal and budget.kv_heads is not None and budget.kv_heads not in shapes[0].counts:
            possible = ", ".join(str(n) for n in shapes[0].counts)
            yield (
                f"equal groups are asked for, and {shapes[0].num_heads} KV heads do not divide into {budget.kv_heads}; "
                f"possible: `kv_heads` {possible}. Or `format=grouped` with `cardinality=arbitrary`, which takes any number"
            )
        common = (
            set(shapes[0].counts).intersection(*(shape.counts for shape in shapes)) if self.tied else None
        )
        if common is not None and not common:
            yield "`format=uniform` needs a number of KV heads that every layer can have; there is none"
        smallest = sum(min(common or shape.counts) * shape.entry.width for shape in shapes)
        whole = sum(shape.num_heads * shape.entry.width for shape in shapes)
        if not fits(smallest, whole, self.share):
            least = smallest / whole * self.types_ratio
            before = spec.cache if self.types is None else replace(spec.cache, element_bytes=2)
            per_token = round(before.bytes_per_token * least)
            also = "" if budget.asked.startswith("kv_ratio") else f", a kv_ratio of {budget.kv_ratio:.4g},"
            yield (
                f"{budget.asked}{also} cannot be met; the smallest that can be met within method, format and constraints is "
                f"{least:.4f}, {per_token} bytes per token"
            )
        only, heads = self.method.only_count, spec.key_heads[0]
        if only is not None and self.allocation.name == "uniform":
            most = max(n for n in range(1, heads + 1) if fits(n, heads, self.share))
            if most != only:
                yield (
                    f"method {options.method} keeps one KV head per layer, the budget ({budget.asked}) leaves {most}; "
                    f"ask for `kv_heads=1` (kv_ratio {1 / heads:.4g}) or another method"
                )
