"""`evaluate`: several checkpoints, one text, one table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gqakit.core.cache_types import CachePair
from gqakit.data.batches import Content, batches_of
from gqakit.data.samples import Batch, in_precision, positions_of
from gqakit.errors import DataError
from gqakit.evaluation.agreement import (
    AgreementScores,
    HeadScores,
    Pooling,
    agreement,
    embed,
    head_outputs,
    head_scores,
)
from gqakit.evaluation.cache import HALVES, CacheSizes, runs_of, with_stacks_of
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.evaluation.options import EvaluateOptions
from gqakit.evaluation.runners import InSequence, Remembered, Runner, Whole
from gqakit.evaluation.table import EvaluationRow, TaskRow
from gqakit.evaluation.tasks import evaluate_tasks
from gqakit.models.architectures import text_part
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.blockwise.room import Load, opened_blocks
from gqakit.models.families.base import Task
from gqakit.models.outputs import Output
from gqakit.models.processes import Processes
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import Running, load_model
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Advance, Reporter, silent

LOG = logging.getLogger("gqakit")
ROOM = 4
"""The source's logits are kept, so that it runs once, while they take no more than this part of the free memory."""

POOLING: dict[Task, Pooling] = {"embedding": "mean", "image": "first"}
"""How the encoders of a task make one embedding of an input: sentence embedders average, image models have a first token.

A decoder's last position is the one that has read everything.
"""


@takes(EvaluateOptions)
def evaluate(
    model: str | Path,
    others: Sequence[str | Path] = (),
    *,
    options: EvaluateOptions,
    progress: Reporter = silent,
) -> Sequence[EvaluationRow] | Sequence[TaskRow]:
    """Perplexity and divergence from the source, or agreement with it, and cache size, for a source and its conversions.

    What predicts tokens is scored by that; another head by how its choices agree with the source's; a model without a head
    by how its embeddings do (mean over positions of text, the first position of images, the last of a decoder).

    With `tasks` each is scored on these instead, by lm-eval; see `gqakit.evaluation.tasks`.

    The source runs once where its logits can be kept; the others come one after another, two models in memory at a time.
    With `kv_cache` the source is scored as it is, then source and conversions with keys and values rounded as a cache of
    these types holds them.

    Args:
        model: the source.
        others: what was made of it; one directory or several.
        options: see `EvaluateOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        GqakitError: one of CheckpointError, FamilyError, DataError, UsageError, MissingDependencyError.
    """
    named = [others] if isinstance(others, str | Path) else others
    conversions = [Source.open(name) for name in named]
    # A grouped checkpoint names what was converted: sizes count all that any of them did.
    source = Source.open(model, sorted({name for each in conversions for name in each.spec.stacks}))
    if options.tasks:
        _check_vocabulary(source, conversions)
        return evaluate_tasks(source, conversions, options, progress)
    return evaluate_sources(source, conversions, options.read("evaluation"), options, progress)


def evaluate_sources(
    source: Source,
    conversions: Sequence[Source],
    content: Content,
    options: EvaluateOptions,
    progress: Reporter,
) -> list[EvaluationRow]:
    """`evaluate` for models that are open and data that is read."""
    _check_vocabulary(source, conversions)
    types = check_cache_types(options.kv_cache, source.spec)
    others = runs_of(source, conversions, types)[1:]
    with evaluation_of(source, content, options, progress, conversions, halves=bool(types)) as job:
        return [job.original, *(job.row(*run) for run in others)]


@contextmanager
def evaluation_of(
    source: Source,
    content: Content,
    options: EvaluateOptions,
    progress: Reporter,
    conversions: Sequence[Source] = (),
    *,
    halves: bool = False,
) -> Iterator[Evaluation]:
    """A source, scored, and whatever is then asked to be compared with it.

    Args:
        source: the model. content: read. options: of the data and of the run; the types of caches are asked for row by row.
        progress: hears of each row.
        conversions: what will be compared, as far as it is known: decides what fits in memory beside the source.
        halves: count bytes against a cache of 16 bits, and not of the precision of the run.
    """
    batches = batches_of(source, content, window=options.window, tokens=options.tokens)
    processes = Processes.of_launch()
    processes.agree(_described((source, *conversions), content, options))
    where = options.changed(device=processes.device(options.device))
    running = Running.of(where, source.checkpoint)
    mine = {n: in_precision(batch, running.dtype) for n, batch in enumerate(processes.mine(batches))}
    heard = progress if processes.is_first else silent
    with ExitStack() as kept:
        job = Evaluation(source, conversions, mine, running, processes, heard, halves, kept)
        job.original = job.row(source)
        yield job


def _described(sources: Sequence[Source], content: Content, options: EvaluateOptions) -> dict[str, Any]:
    """What processes of one launch must agree about."""
    sizes = [(each.checkpoint.nbytes, each.checkpoint.config_bytes) for each in sources]
    how = {"window": options.window, "tokens": options.tokens, "dtype": options.dtype}
    return {"models": sizes, "text_sha256": content.sha256, "kv_cache": options.kv_cache, **how}


@dataclass
class Evaluation:
    """One evaluation, checked: on this process's share of the input, but for the scores. See `evaluation_of`."""

    source: Source
    conversions: Sequence[Source]
    batches: Mapping[int, Batch]
    running: Running
    processes: Processes
    progress: Reporter
    halves: bool
    kept: ExitStack  # closes what the source runs in
    original: EvaluationRow = field(init=False)  # the source as it is
    reference: Runner | None = None  # the source, as it was run first
    made: Any = None  # what the source gave, where that is compared as it is

    def row(self, each: Source, pair: CachePair | None = None) -> EvaluationRow:
        """The source or a conversion, with keys and values rounded as a cache of these types holds them."""
        with ExitStack() as own:
            runner, advance = self.opened(each, pair, self.kept if self.reference is None else own, own)
            if self.reference is None:  # the source itself, which comes first
                room = self.running.host // ROOM
                runner = self.reference = Remembered(runner, room) if isinstance(runner, Whole) else runner
            own.enter_context(self.reference.ready())
            own.enter_context(runner.ready())
            scores = self.scores(runner, self.reference, advance)
            counted = (pair or HALVES) if self.halves else None
            spec = with_stacks_of(each.spec, self.source.spec)
            size = CacheSizes(spec.cache, self.source.spec.cache, self.running.dtype.itemsize, counted)
            cached = bool(self.batches) and spec.is_cached
            return EvaluationRow(
                name=each.short_name,
                **size.columns(runner.cache(spec, self.batches[0], counted) if cached else None),
                scores=scores,
                kv_cache=None if pair is None else pair.name,
            )

    def opened(
        self, each: Source, pair: CachePair | None, stack: ExitStack, own: ExitStack
    ) -> tuple[Runner, Advance]:
        """What runs a checkpoint: whole where it fits beside another, else block by block, which it does here.

        Args:
            each: the checkpoint. pair: the types of its cache.
            stack: closed when the checkpoint is no longer needed. own: closed after its scores.

        Returns:
            The runner, and what is to hear of windows that were scored.
        """
        called = each.short_name if pair is None else f"{each.short_name}, {pair.name}"
        largest = max(self.conversions, key=lambda one: one.checkpoint.nbytes, default=None)
        beside = [] if largest is None else [largest.checkpoint]
        total, unit = sum(map(positions_of, self.batches.values())), each.spec.family.unit
        if not self.running.whole(self.source.checkpoint, *beside):
            try:
                runner = self._in_sequence(each, pair, stack)
                with (
                    self.progress(
                        f"evaluate {called}", total * runner.blocks.count, f"{unit} x blocks"
                    ) as advance,
                    rounded_cache(runner.model, with_stacks_of(each.spec, self.source.spec), pair),
                ):
                    runner.pass_through(self.batches, advance)
                return runner, lambda count: None
            except NotByBlocks as error:
                LOG.warning("%s runs whole and not block by block, as %s", each.name, error)
        model = load_model(each.checkpoint, self.running.dtype, self.running.device)
        advance = own.enter_context(self.progress(f"evaluate {called}", total, unit))
        own.enter_context(rounded_cache(model, with_stacks_of(each.spec, self.source.spec), pair))
        return Whole(model), advance

    def _in_sequence(self, each: Source, pair: CachePair | None, stack: ExitStack) -> InSequence:
        spec = each.spec if self.source.spec.is_grouped else self.source.with_all_stacks().spec
        run = {"evaluation": each.name, "cache": pair and pair.name, "rank": self.processes.rank}
        longest = max(map(positions_of, self.batches.values()), default=1)
        width = spec.hidden_size * self.running.dtype.itemsize
        around = 2 * int(each.checkpoint.config.get("vocab_size") or 0) * width if self.conversions else 0
        # Embeddings and head of the other model are there too when the two are compared.
        opened = opened_blocks(each.checkpoint, spec, self.running, run, Load(longest, around))
        return InSequence(stack.enter_context(opened))

    def scores(
        self, runner: Runner, reference: Runner, advance: Advance
    ) -> LanguageScores | AgreementScores | HeadScores:
        """The scores of a checkpoint; those of the source come first."""
        batches, processes, task = self.batches, self.processes, self.source.spec.family.task
        if runner.predicts and task not in POOLING:
            theirs = None if runner is reference else reference
            return score_language(runner, batches, theirs, advance, processes)
        heads = [Output.of(runner.run(0, batches[0])).is_logits] if batches else []
        if any(processes.every(any(heads))):
            made = head_outputs(runner, batches, advance)
            self.made = self.made or made
            return head_scores(made, self.made, processes)
        made = embed(runner, batches, POOLING.get(task, "last"), advance)
        self.made = self.made or made
        return agreement(made, self.made, processes)


def _check_vocabulary(source: Source, conversions: Sequence[Source]) -> None:
    expected = text_part(source.checkpoint.config).get("vocab_size")
    for each in conversions:
        if (found := text_part(each.checkpoint.config).get("vocab_size")) != expected:
            raise DataError(
                f"{each.name} has a vocabulary of {found}, {source.name} one of {expected}: it was not made of it"
            )
