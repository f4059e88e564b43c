"""Accuracy on tasks, for a source and its conversions: lm-eval scores, what it runs is a model that is loaded here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gqakit.core.cache_types import CachePair
from gqakit.errors import UsageError
from gqakit.evaluation.cache import HALVES, CacheSizes, measure_cache, runs_of
from gqakit.evaluation.measures import on_task
from gqakit.evaluation.options import EvaluateOptions
from gqakit.evaluation.table import TaskRow
from gqakit.evaluation.task_names import is_file, load_tasks, unremarked
from gqakit.evaluation.task_scores import QuestionValues, TaskScore, task_scores, values_by_question
from gqakit.models.architectures import architecture, is_causal_model
from gqakit.models.processes import Processes
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import Running, load_model, load_tokenizer
from gqakit.models.source import Source
from gqakit.progress import Advance, Reporter

MEASURED = 8
"""Tokens whose cache is measured."""


def evaluate_tasks(
    source: Source, conversions: Sequence[Source], options: EvaluateOptions, progress: Reporter
) -> list[TaskRow]:
    """The rows of `evaluate` with `tasks`: one model in memory at a time, all with the tokenizer of the source.

    With `kv_cache` the source is scored as it is, then all with keys and values rounded.

    Raises:
        UsageError: a model is no causal language model, does not fit into memory, or several processes were launched.
        CheckpointError, DataError, MissingDependencyError: see `load_tasks` and `load_model`.
    """
    types = check_cache_types(options.kv_cache, source.spec)
    scoring = TaskScoring.of(source, conversions, options, progress)
    running = scoring.running
    rows: list[TaskRow] = []
    for each, pair in runs_of(source, conversions, types):
        model = load_model(each.checkpoint, running.dtype, running.device)
        counted = None if types is None else pair or HALVES
        size = CacheSizes(each.spec.cache, source.spec.cache, running.dtype.itemsize, counted)
        with rounded_cache(model, each.spec, pair):
            measured = measure_cache(model, each.spec, {"input_ids": torch.arange(MEASURED)[None]}, counted)
            results = scoring.scores(model, each.short_name)
        rows.append(
            TaskRow(
                name=each.short_name,
                **size.columns(measured),
                results=results,
                kv_cache=None if pair is None else pair.name,
            )
        )
    return rows


def _check(each: Source, running: Running) -> None:
    if not is_causal_model(each.checkpoint.config):
        raise UsageError(
            f"`tasks` are for causal language models; {each.name} is a {architecture(each.checkpoint.config)}"
        )
    if not running.whole(each.checkpoint):
        raise UsageError(
            f"`tasks` run whole models, and {each.name} does not fit into {running.memory / 2**30:.1f} GiB; give a "
            "16-bit `dtype`, another `device`, or `blockwise=never` to try all the same"
        )


@dataclass
class TaskScoring:
    """Tasks that are loaded, for one model after another.

    Attributes:
        tasks: see `load_tasks`. tokenizer: of the source. options: how many questions, and answers at a time.
        running: what runs the models.
        source: what the source scored on each question, which others are compared with: the first model that is scored.
    """

    tasks: dict[str, Any]
    tokenizer: Any
    options: EvaluateOptions
    running: Running
    progress: Reporter
    source: QuestionValues | None = None

    @classmethod
    def of(
        cls, source: Source, conversions: Sequence[Source], options: EvaluateOptions, progress: Reporter
    ) -> TaskScoring:
        """For a source and its conversions.

        Raises: as `evaluate_tasks`.
        """
        Processes.of_launch().alone("evaluate with `tasks`")
        running = Running.of(options, source.checkpoint)
        for each in (source, *conversions):
            _check(each, running)
        tokenizer = load_tokenizer(source.checkpoint)
        return cls(load_tasks(options.tasks), tokenizer, options, running, progress)

    @property
    def sha256(self) -> str:
        """Of what is asked: the questions of every task, and local files that define tasks."""
        digest = hashlib.sha256()
        for name in sorted(map(str, self.options.tasks)):
            if is_file(name):
                digest.update(Path(name).read_bytes())
        for name, task in sorted(self.tasks["tasks"].items()):
            digest.update(name.encode())
            for question in task.eval_docs:
                digest.update(repr(question).encode())
        return digest.hexdigest()

    def scores_of(self, each: Source, pair: CachePair | None) -> dict[str, float | None]:
        """The scores of a checkpoint by measure, with keys and values rounded as a cache of these types holds them."""
        model = load_model(each.checkpoint, self.running.dtype, self.running.device)
        with rounded_cache(model, each.spec, pair):
            return {on_task(r.task, r.metric): r.value for r in self.scores(model, each.short_name)}

    def scores(self, model: Any, name: str) -> tuple[TaskScore, ...]:
        """The scores of a model; those of the source come first."""
        from lm_eval import evaluate
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        random.seed(DEFAULT_RANDOM_SEED)  # tasks that draw examples draw the same for each model
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        for task in self.tasks["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        running = _as_lm_eval_has_it(model, self.tokenizer, self.options.batch_size, self.progress, name)
        made: Any = evaluate(running, self.tasks, limit=self.options.limit)
        self.source = self.source or values_by_question(made["samples"])
        return task_scores(made, self.source)


def _as_lm_eval_has_it(model: Any, tokenizer: Any, batch_size: int, progress: Reporter, name: str) -> Any:
    """A loaded model as lm-eval runs it, which reports the answers that were scored."""
    from lm_eval.models.huggingface import HFLM

    base: Any = HFLM  # which its decorator hides from type checkers

    class Reporting(base):
        advance: Advance = staticmethod(lambda amount: None)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with progress(f"evaluate {name}", len(requests), "answers") as self.advance:
                return super().loglikelihood(requests, disable_tqdm=True)

        def _model_call(self, inps: torch.Tensor, *others: Any, **named: Any) -> Any:
            logits = super()._model_call(inps, *others, **named)
            self.advance(len(inps))
            return logits

    with unremarked():
        return Reporting(
            pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size,
            softmax_dtype=torch.float32,
        )  # fmt: skip
