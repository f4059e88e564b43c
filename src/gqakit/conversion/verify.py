"""`verify`: everything that a converted checkpoint promises, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gqakit.checkpoint import Checkpoint
from gqakit.conversion.checks import (
    Check,
    attention_errors,
    check_attention,
    check_cache,
    check_checksums,
    check_config,
    check_runtime,
    check_tensors,
)
from gqakit.conversion.convert import converted_cache
from gqakit.conversion.files import PLAN_FILE, UPTRAIN_FILE
from gqakit.conversion.options import VerifyOptions
from gqakit.data.batches import batches_of, noise_batch
from gqakit.data.samples import Batch
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.options import takes
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
        return all(check.passed is not False for check in self.checks)

    def __repr__(self) -> str:
        failed = [check.name for check in self.checks if check.passed is False]
        return f"Verification({'passed' if self.passed else 'FAILED: ' + ', '.join(failed)})"


@takes(VerifyOptions)
def verify(
    model: str | Path,
    out: str | Path,
    batch: Batch | None = None,
    *,
    options: VerifyOptions,
    progress: Reporter = silent,
) -> Verification:
    """Check structure, shapes, types, finiteness, runtime, reload, attention output and cache size of a conversion.

    Where the files already are not as planned, the model is not run.

    Args:
        model: the source. out: what was made of it.
        batch: keyword arguments of a forward pass to run both on, in place of data.
        options: see `VerifyOptions`; also as keywords. Without data, the held-out text of gqakit's own, or noise
            for a model that does not run on text.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        CheckpointError, FamilyError, PlanError: when something cannot be read at all.
    """
    target = Checkpoint.open(
        str(out)
    )  # not described as a model: what is wrong with it is for the checks to say
    plan = Plan.load(target.path / PLAN_FILE)
    source = Source.open(model, plan.source.stacks)
    plan.check_source(source.fingerprint_like(plan.source.fingerprint), source.name)
    trained = (target.path / UPTRAIN_FILE).is_file()
    checks = [check_config(source, plan, target)]
    with progress("verify tensors", target.nbytes, "bytes") as advance:
        checks += check_tensors(source, plan, target, advance, trained=trained)
    checks.append(check_checksums(target))
    if not all(check.passed for check in checks):
        return Verification(tuple(checks), ())
    with progress("verify the running model", 4, "steps") as advance:
        batch = batch or _batch(source, options)
        stock = load_model(source.checkpoint)
        checks.append(check_runtime(source, stock, batch, behind_norm=plan.merging.behind_norm))
        advance(1)
        running = load_model(target)
        checks.append(Check("reload", True, f"loads as {type(running).__name__}"))
        advance(1)
        errors = attention_errors(stock, running, source.spec, batch)
        checks += check_attention(errors, plan, trained=trained)
        advance(1)
        if source.spec.is_cached:
            promised = converted_cache(source.spec, plan, element_bytes=4)
            checks.append(check_cache(running, source.spec, promised, batch))
        advance(1)
    return Verification(tuple(checks), tuple(errors))


def _batch(source: Source, options: VerifyOptions) -> Batch:
    """One batch of what the model takes."""
    if not options.names_data and source.spec.family.task in ("image", "speech", "pair"):
        return noise_batch(source)
    content = options.read("evaluation")
    return batches_of(source, content, window=options.window, tokens=options.window)[0]
