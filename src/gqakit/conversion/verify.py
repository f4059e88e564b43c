"""`verify`: everything a converted checkpoint promises, looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gqakit.checkpoint import Checkpoint
from gqakit.conversion.checks import (
    Check,
    attention_errors,
    check_attention,
    check_cache,
    check_checksums,
    check_config,
    check_tensors,
)
from gqakit.conversion.convert import converted_cache
from gqakit.conversion.files import PLAN_FILE, UPTRAIN_FILE
from gqakit.data.batches import DataSource, batches_of, noise_batch, read_source
from gqakit.models.inspection import open_model
from gqakit.models.running import load_model
from gqakit.models.spec import ModelSpec
from gqakit.planning.plan import Plan
from gqakit.progress import Reporter, silent


@dataclass(frozen=True)
class Verification:
    """The checks in order, and each layer's relative attention-output error (empty if nothing was run)."""

    checks: tuple[Check, ...]
    layer_errors: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)


def verify(
    model: str,
    out: str,
    *,
    text: DataSource | None = None,
    window: int = 128,
    batch: dict[str, Any] | None = None,
    progress: Reporter = silent,
) -> Verification:
    """Check structure, shapes, types, finiteness, reload, attention output and cache size of a conversion.

    Where the files already are not as planned, the model is not run.

    Args:
        model: the source. out: what was made of it.
        text: text, images or speech; its first window, images or recording goes through both models. None for the held-out
            text that comes with gqakit, or noise for a model that does not run on text.
        window: tokens of the window.
        batch: keyword arguments of a forward pass to use instead.
        progress: see the package.

    Raises:
        CheckpointError, FamilyError, PlanError: when something cannot be read at all.
    """
    target = Checkpoint.open(out)
    plan = Plan.load(target.path / PLAN_FILE)
    source, spec = open_model(model, plan.source.stacks)
    plan.check_source(source.fingerprint(plan.source.fingerprint), model)
    trained = (target.path / UPTRAIN_FILE).is_file()
    checks = [check_config(source, spec, plan, target)]
    with progress("verify tensors", target.nbytes, "bytes") as advance:
        checks += check_tensors(source, spec, plan, target, advance, trained=trained)
    checks.append(check_checksums(target))
    if not all(check.passed for check in checks):
        return Verification(tuple(checks), ())
    with progress("verify the running model", 3, "steps") as advance:
        batch = batch or _batch(source, spec, text, window)
        converted = load_model(target, "float32", "cpu")
        checks.append(Check("reload", True, f"loads as {type(converted).__name__}"))
        advance(1)
        errors = attention_errors(load_model(source, "float32", "cpu"), converted, spec, batch)
        checks.append(check_attention(errors, plan, spec, trained=trained))
        advance(1)
        if spec.is_cached:
            checks.append(check_cache(converted, spec, converted_cache(spec, plan, element_bytes=4), batch))
        advance(1)
    return Verification(tuple(checks), tuple(errors))


def _batch(source: Checkpoint, spec: ModelSpec, text: DataSource | None, window: int) -> dict[str, Any]:
    """One batch of what the model takes."""
    if text is None and spec.family.task in ("image", "speech"):
        return noise_batch(source, spec)
    content = read_source(("evaluation",) if text is None else text)
    return batches_of(source, spec, content, window=window, tokens=window)[0]
