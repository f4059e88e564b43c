"""`verify`: everything a converted checkpoint promises, looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gqakit.api.models import load_model, load_tokenizer
from gqakit.calibration.text import read_text, token_windows
from gqakit.checkpoint import Checkpoint
from gqakit.convert import PLAN_FILE, converted_cache
from gqakit.inspection import open_model
from gqakit.plan import Plan
from gqakit.progress import Reporter, silent
from gqakit.training.export import UPTRAIN_FILE
from gqakit.verify import (
    Check,
    attention_errors,
    check_attention,
    check_cache,
    check_checksums,
    check_config,
    check_tensors,
)


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
    text: Sequence[str | Path] = ("evaluation",),
    window: int = 128,
    progress: Reporter = silent,
) -> Verification:
    """Check structure, shapes, types, finiteness, reload, attention output and cache size of a conversion.

    Where the files already are not as planned, the model is not run.

    Args:
        model: the source. out: what was made of it.
        text, window: one window of this text goes through both models.
        progress: see the package.

    Raises:
        CheckpointError, FamilyError, PlanError: when something cannot be read at all.
    """
    source, spec = open_model(model)
    target = Checkpoint.open(out)
    plan = Plan.load(target.path / PLAN_FILE)
    plan.check_source(source.fingerprint(), model)
    trained = (target.path / UPTRAIN_FILE).is_file()
    checks = [check_config(source, spec, plan, target)]
    with progress("verify tensors", target.nbytes, "bytes") as advance:
        checks += check_tensors(source, spec, plan, target, advance, trained=trained)
    checks.append(check_checksums(target))
    if not all(check.passed for check in checks):
        return Verification(tuple(checks), ())
    with progress("verify the running model", 3, "steps") as advance:
        ids = token_windows(load_tokenizer(source), read_text(text), window=window, tokens=window)[0]
        converted = load_model(target, "float32", "cpu")
        checks.append(Check("reload", True, f"loads as {type(converted).__name__}"))
        advance(1)
        errors = attention_errors(load_model(source, "float32", "cpu"), converted, spec, ids)
        checks.append(check_attention(errors, plan, trained=trained))
        advance(1)
        checks.append(check_cache(converted, converted_cache(spec, plan, element_bytes=4)))
        advance(1)
    return Verification(tuple(checks), tuple(errors))
