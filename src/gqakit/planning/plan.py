"""The plan file: what will be done to a checkpoint, readable, versioned and comparable. It knows no method."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint.atomic import regular, write_bytes
from gqakit.core.grouping import Grouping, Partition
from gqakit.errors import PlanError, UsageError
from gqakit.models.engines import ENGINES, check_engine, kind_of, names_that_run
from gqakit.models.families import FAMILIES

PLAN_VERSION = 1

Format = Literal["uniform", "grouped"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanSource(_Strict):
    """The model that the plan was made for; `stacks` where it has several kinds of attention layers.

    `num_heads`, `num_kv_heads`: of every layer, or of each where they differ.
    """

    name: str
    model_type: str
    stacks: tuple[str, ...] = ()
    fingerprint: str
    num_layers: int = Field(gt=0)
    num_heads: PositiveInt | tuple[PositiveInt, ...]
    num_kv_heads: PositiveInt | tuple[PositiveInt, ...]
    head_dim: int = Field(gt=0)

    def kv_heads_of(self, layer: int) -> int:
        """KV heads of one layer."""
        return self.num_kv_heads if isinstance(self.num_kv_heads, int) else self.num_kv_heads[layer]


class BudgetRecord(_Strict):
    """What was asked for, in the words used, and what the plan reaches."""

    asked: str
    kv_ratio_asked: float = Field(gt=0, le=1)
    kv_ratio: float = Field(gt=0, le=1)
    kv_bytes_per_token_before: int = Field(gt=0)
    kv_bytes_per_token: int = Field(gt=0)


class StatisticsRecord(_Strict):
    """The calibration that the plan rests on; `convert` needs the very same."""

    path: str
    fingerprint: str
    tokens: int = Field(gt=0)


class Merging(_Strict):
    """The merge rule asked for, and what acts on keys and on values (a rule may have to fall back).

    `behind_norm`: keys are merged as their normalisation leaves them; a plan that does not says nothing of it.
    """

    rule: str
    key: str
    value: str
    behind_norm: bool = False

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated = write(self)
        return stated if self.behind_norm else {k: v for k, v in stated.items() if k != "behind_norm"}


class Constraints(_Strict):
    """What was asked of the groups besides the format."""

    kv_maps: Literal["shared", "separate"] = "shared"
    cardinality: Literal["arbitrary", "equal"] = "arbitrary"
    max_group_size: int | None = Field(default=None, gt=0)
    kv_multiple_of: int = Field(default=1, gt=0)


class CacheRecord(_Strict):
    """The types that the cache is to be held in, where they are not 16 bits.

    `types` as docs/kv-cache.md names them, with the rotation that the engine has; `engine` is the one that they are for, and
    `serve` how to ask it for them; `basis`: heads are put in a basis in which they round well, which changes nothing else.
    """

    types: str
    engine: str | None
    serve: str
    basis: bool

    @property
    def in_words(self) -> str:
        """The types, and how to serve them."""
        return f"{self.types}; serve with: {self.serve} ({self.engine})" if self.serve else self.types


class LayerPlan(_Strict):
    """One layer: the group of every source KV head, and the error relative to losing all heads.

    `gap` is the share of the searched error that a better grouping could save at most: 0 where the search is exact,
    None for a method that does not minimise it.
    """

    key: tuple[int, ...]
    value: tuple[int, ...]
    key_error: float = Field(ge=0)
    value_error: float = Field(ge=0)
    gap: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _canonical(self) -> LayerPlan:
        Grouping(Partition(self.key), Partition(self.value))  # raises ValueError, which pydantic reports
        return self

    @property
    def grouping(self) -> Grouping:
        """The layer's partitions."""
        return Grouping(Partition(self.key), Partition(self.value))


class Plan(_Strict):
    """Every layer's grouping and where it came from. Nothing in it depends on time or machine."""

    gqakit_plan: Literal[1] = PLAN_VERSION
    source: PlanSource
    budget: BudgetRecord
    format: Format
    method: str
    method_options: dict[str, bool | int | float | str | None] = {}
    allocation: str
    allocation_options: dict[str, bool | int | float | str | None] = {}
    layer_loss: Literal["none", "objective", "error", "predicted", "corrected", "measured"] = "none"
    constraints: Constraints = Constraints()
    merging: Merging
    seed: int
    moments: StatisticsRecord | None
    cache: CacheRecord | None = None
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    layers: tuple[LayerPlan, ...]

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated = write(self)
        return stated if self.cache is not None else {k: v for k, v in stated.items() if k != "cache"}

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if len(self.layers) != self.source.num_layers:
            raise ValueError(f"{len(self.layers)} layers planned, the source has {self.source.num_layers}")
        for index, layer in enumerate(self.layers):
            if len(layer.key) != self.source.kv_heads_of(index):
                raise ValueError(
                    f"layer {index} groups {len(layer.key)} heads of {self.source.kv_heads_of(index)}"
                )
        if self.format == "uniform" and not is_uniform(self.groupings):
            raise ValueError("format 'uniform' asks for the same number of equal groups in every layer")
        return self

    def __repr__(self) -> str:
        made = self.budget
        return (
            f"Plan({self.source.name}: {made.kv_bytes_per_token_before:,} → {made.kv_bytes_per_token:,} bytes per token, "
            f"kv_ratio {made.kv_ratio:.4g}, {self.format}, {self.method}, {self.merging.rule}, {self.allocation})"
        )

    __str__ = __repr__

    @property
    def groupings(self) -> tuple[Grouping, ...]:
        """The partitions of every layer."""
        return tuple(layer.grouping for layer in self.layers)

    @property
    def sized(self) -> str:
        """What the budget is about: what generation caches, or the keys and values that an encoder makes."""
        family = FAMILIES.get(self.source.model_type)
        stacks = () if family is None else family.stacks
        chosen = [stack for stack in stacks if not self.source.stacks or stack.name in self.source.stacks]
        return "KV cache" if not chosen or any(stack.cached for stack in chosen) else "keys and values"

    @property
    def calibrated_on(self) -> str:
        """How much the statistics were taken on, in words; "none" where the weights alone decided."""
        if self.moments is None:
            return "none"
        family = FAMILIES.get(self.source.model_type)
        return f"{self.moments.tokens:,} {'tokens' if family is None else family.unit}"

    @property
    def engines(self) -> str:
        """Where the result can run."""
        if self.format == "uniform":
            return "any engine that runs the source"
        if self.merging.behind_norm:
            return "transformers; no other engine merges keys behind their normalisation"
        equal = all(grouping.is_uniform for grouping in self.groupings)
        kind = kind_of(self.format, not self.is_shared)
        names = names_that_run(kind, self.source.model_type, equal=equal)
        apart = "" if self.is_shared else "; no engine but transformers keeps keys and values apart"
        return f"{names} (how: docs/serving.md){apart}"

    @property
    def most_parallel(self) -> int:
        """The most devices over which tensor parallelism cuts every layer's heads; over more an engine repeats some."""
        return gcd(*(count for g in self.groupings for count in (g.key.num_groups, g.value.num_groups)))

    @property
    def is_shared(self) -> bool:
        """Whether keys and values have one map in every layer."""
        return all(grouping.is_shared for grouping in self.groupings)

    def check_engine(self, engine: str) -> None:
        """Raise `UsageError` unless the engine runs what the plan makes."""
        if self.merging.behind_norm and engine != "transformers":
            raise UsageError(
                f"`engine={engine}` cannot merge keys behind their normalisation, as this plan does; transformers can. "
                "Plan with `format=uniform`, which merges them before it"
            )
        known = ENGINES.get(engine)
        if known is not None and known.equal_groups and not all(each.is_uniform for each in self.groupings):
            raise UsageError(
                f"`engine={engine}` takes layers whose groups have one size, and this plan has others. Plan with "
                f"`engine={engine}`, or with `cardinality=equal`"
            )
        check_engine(engine, (self.format,), not self.is_shared, self.source.model_type)

    def statistics(self, given: Path | None = None) -> StatisticsFile | None:
        """The calibration that the plan rests on, in a file of its own name or a given one; None where it rests on none.

        Raises:
            PlanError: when it is not there.
        """
        if self.moments is None:
            return None
        path = given or Path(self.moments.path)
        if not path.is_file():
            raise PlanError(
                f"the plan rests on calibration statistics that are not at {path}; give their place with `statistics`, or "
                "calibrate and plan again"
            )
        return StatisticsFile.open(path)

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides: the file's bytes."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The file's text: indented, with lists of numbers on one line."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        compact = re.sub(
            r"\[\n[\d\s,]*\]",  # only a list over several lines: in a string a line never ends
            lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
        return compact + "\n"

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        write_bytes(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            PlanError: when the file is missing, not JSON, of another version, or breaks the schema; every
                offending key is named.
        """
        try:
            data = json.loads(regular(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"plan {path} is not JSON: {error}") from error
        if not isinstance(data, dict) or "gqakit_plan" not in data:
            raise PlanError(f"{path} is not a gqakit plan: it has no key 'gqakit_plan'")
        if data["gqakit_plan"] != PLAN_VERSION:
            raise PlanError(
                f"plan {path} has version {data['gqakit_plan']!r}, this gqakit reads version {PLAN_VERSION}; make it again"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = "; ".join(_describe(problem) for problem in error.errors())
            raise PlanError(f"plan {path} is not valid: {problems}") from error

    def check_source(self, fingerprint: str, name: str) -> None:
        """Raise `PlanError` unless the plan was made for the model with this fingerprint."""
        if fingerprint != self.source.fingerprint:
            raise PlanError(
                f"the plan was made for {self.source.name} ({self.source.fingerprint[:19]}…), "
                f"{name} is another model ({fingerprint[:19]}…); make a plan for it with `gqakit plan`"
            )


def is_uniform(groupings: tuple[Grouping, ...]) -> bool:
    """Whether stock engines can run these: one map per layer, equal groups, the same number in all layers."""
    return all(g.is_uniform for g in groupings) and len({g.key.num_groups for g in groupings}) == 1


def diff_plans(a: Plan, b: Plan) -> Iterator[tuple[str, str, str]]:
    """What differs: `(field, value in a, value in b)`, field by field, layer by layer."""
    left, right = a.model_dump(mode="json"), b.model_dump(mode="json")
    for key in left:
        if key != "layers":
            yield from _diff(key, left[key], right[key])
    for index in range(max(len(a.layers), len(b.layers))):
        one, two = (p["layers"][index] if index < len(p["layers"]) else None for p in (left, right))
        yield from _diff(f"layers.{index}", one, two)


def _diff(path: str, a: object, b: object) -> Iterator[tuple[str, str, str]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            yield from _diff(f"{path}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield path, json.dumps(a), json.dumps(b)


def _describe(problem: object) -> str:
    assert isinstance(problem, dict)
    where = ".".join(str(part) for part in problem["loc"]) or "plan"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where}: {problem['msg']}"
