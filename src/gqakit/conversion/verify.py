"""`verify`: everything that a converted checkpoint promises, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.checkpoint.jsonio import parse_object, read_bytes
from gqakit.conversion.checks import (
    Check,
    attention_errors,
    check_attention,
    check_cache,
    check_checksums,
    check_config,
    check_measured_cache,
    check_runtime,
    check_tensors,
    comparing_attention,
)
from gqakit.conversion.convert import converted_cache
from gqakit.conversion.files import PLAN_FILE, REPAIR_FILE, UPTRAIN_FILE
from gqakit.conversion.options import VerifyOptions
from gqakit.data.batches import batches_of, noise_batch
from gqakit.data.samples import Batch, positions_of
from gqakit.evaluation.runners import InSequence
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.blockwise.room import Load, opened_blocks
from gqakit.models.blockwise.stream import stream
from gqakit.models.running import Running, load_model
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.planning.plan import Plan
from gqakit.progress import Reporter, silent

LOG = logging.getLogger("gqakit")


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
    trained, repaired = ((target.path / name).is_file() for name in (UPTRAIN_FILE, REPAIR_FILE))
    checks = [check_config(source, plan, target)]
    with progress("verify tensors", target.nbytes, "bytes") as advance:
        checks += check_tensors(source, plan, target, advance, trained=trained, repaired=repaired)
    checks.append(check_checksums(target))
    if not all(check.passed for check in checks):
        return Verification(tuple(checks), ())
    batch = batch or _batch(source, options)
    running = Running.of(options, source.checkpoint)
    rounded = repaired and (
        plan.cache or "kv_cache" in parse_object(read_bytes(target.path / REPAIR_FILE), REPAIR_FILE)
    )
    run = _Run(source, target, plan, batch, running, progress, bool(trained or rounded))
    ran, errors = None, []
    if not running.whole(source.checkpoint, target):
        try:
            ran, errors = run.in_sequence()
        except NotByBlocks as error:
            LOG.warning("%s runs whole and not block by block, as %s", source.name, error)
    if ran is None:
        ran, errors = run.whole()
    return Verification((*checks, *ran), tuple(errors))


@dataclass(frozen=True)
class _Run:
    """What runs both models: the checks that come of it, and the errors of layers.

    Attributes:
        source, target, plan: what is compared, and what was promised. batch: the input. running: how they run.
        progress: hears of each step. trained: whether weights were fitted since, so that layers differ as they should.
    """

    source: Source
    target: Checkpoint
    plan: Plan
    batch: Batch
    running: Running
    progress: Reporter
    trained: bool

    def whole(self) -> tuple[list[Check], list[float]]:
        """The checks that run the models, both in memory, and the errors of layers."""
        checks: list[Check] = []
        batch = {n: v.to(self.running.device) if isinstance(v, Tensor) else v for n, v in self.batch.items()}
        with self.progress("verify the running model", 4, "steps") as advance:
            stock = load_model(self.source.checkpoint, self.running.dtype, self.running.device)
            checks.append(check_runtime(self.source, stock, batch, behind_norm=self.plan.merging.behind_norm))
            advance(1)
            made = load_model(self.target, self.running.dtype, self.running.device)
            checks.append(Check("reload", True, f"loads as {type(made).__name__}"))
            advance(1)
            errors = attention_errors(stock, made, self.source.spec, batch)
            checks += check_attention(errors, self.plan, trained=self.trained)
            advance(1)
            if self.source.spec.is_cached:
                promised = converted_cache(self.source.spec, self.plan, element_bytes=4)
                checks.append(check_cache(made, self.source.spec, promised, batch))
            advance(1)
        return checks, errors

    def in_sequence(self) -> tuple[list[Check], list[float]]:
        """`whole` with one block of each model in memory. The row "runtime" needs the whole model and is left out."""
        full, spec = self.source.with_all_stacks().spec, self.source.spec
        errors = [0.0] * spec.num_layers
        of_layer = {site: layer for layer, site in enumerate(spec.sites)}
        run = {"verify": self.source.name}
        batch, length = self.batch, positions_of(self.batch)
        with ExitStack() as stack:
            theirs, ours = (
                stack.enter_context(opened_blocks(each, full, self.running, run, Load(length, models=2)))
                for each in (self.source.checkpoint, self.target)
            )
            advance = stack.enter_context(self.progress("verify block by block", theirs.count, "blocks"))

            @contextmanager
            def watch(block: int) -> Iterator[None]:
                sites = (full.sites[layer] for layer in theirs.layers_of(block))
                layers = [of_layer[site] for site in sites if site in of_layer]
                with ours.block(block), comparing_attention(theirs.model, ours.model, spec, layers, errors):
                    yield
                advance(1)

            stream(theirs, {0: batch}, watch=watch)
            checks = [
                Check(
                    "runtime",
                    None,
                    "not compared with transformers' own attention, as the model runs block by block",
                ),
                Check("reload", True, f"loads as {type(ours.model).__name__}, block by block"),
                *check_attention(errors, self.plan, trained=self.trained),
            ]
            if spec.is_cached:
                runner = InSequence(ours)
                runner.pass_through({0: batch}, lambda positions: None)
                promised = converted_cache(spec, self.plan, element_bytes=4)
                with runner.ready():
                    measured = runner.cache(spec, batch, None)
                checks.append(check_measured_cache(measured, type(ours.model).__name__, spec, promised))
        return checks, errors


def _batch(source: Source, options: VerifyOptions) -> Batch:
    """One batch of what the model takes."""
    if not options.names_data and source.spec.family.task in ("image", "speech", "pair"):
        return noise_batch(source)
    content = options.read("evaluation")
    return batches_of(source, content, window=options.window, tokens=options.window)[0]
