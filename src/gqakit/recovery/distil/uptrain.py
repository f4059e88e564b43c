"""`uptrain`: train a converted checkpoint towards its teacher, or on text alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit import __version__
from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, check_output, claimed_directory
from gqakit.checkpoint.jsonio import pretty
from gqakit.conversion.files import CARD_FILE, METRICS_FILE, UPTRAIN_FILE
from gqakit.data.text import Text, token_windows
from gqakit.errors import CheckpointError, DataError, OutputError, UsageError
from gqakit.models.architectures import is_causal_model
from gqakit.models.load import load
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.run_options import DeviceOptions
from gqakit.models.running import check_device, load_tokenizer
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Reporter, silent
from gqakit.recovery.distil.arguments import check_trackers
from gqakit.recovery.distil.data import split_windows
from gqakit.recovery.distil.export import Trained, read_card, write_trained
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.launch import launched, versions
from gqakit.recovery.distil.model_card import uptrained_card
from gqakit.recovery.distil.options import StepSchedule, UptrainOptions
from gqakit.recovery.distil.store import RUN_FILES, Progress, RunStore
from gqakit.recovery.distil.trainable import check_writable, prepare_student
from gqakit.recovery.distil.trainer import Notice, Training, train


@dataclass(frozen=True)
class UptrainResult:
    """What `uptrain` did.

    Attributes:
        out: where it went.
        step: optimiser steps done. best_step: the one whose weights were kept; 0 for those it began with.
        tokens: predicted tokens trained on. seconds: spent in training steps.
        before, after: on the held-out windows, at the start and with the weights that were kept: `loss`, `perplexity` and,
            with a teacher, `kl`.
        learning_rate: of the steps that count; smaller than was asked for where that did harm.
        resumed_from: the step an interrupted run was continued from; 0 for a new one.
        stopped_early: whether evaluations stopped it.
        main: whether this is the process that wrote it; one of several does.
    """

    out: Path
    step: int
    best_step: int
    tokens: int
    seconds: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    learning_rate: float
    resumed_from: int
    stopped_early: bool
    main: bool = True

    @classmethod
    def of(
        cls, out: Path, learning_rate: float, resumed_from: int, ended: Progress, main: bool
    ) -> UptrainResult:
        """What is to be said of a run that ended."""
        return cls(
            out=out,
            step=ended.step,
            best_step=ended.best_step,
            tokens=ended.tokens,
            seconds=ended.seconds,
            before=ended.first or {},
            after=ended.best_scores or {},
            learning_rate=learning_rate,
            resumed_from=resumed_from,
            stopped_early=ended.stopped,
            main=main,
        )


SUFFIX = ".uptrain"
"""A run is kept in `OUT.uptrain` while it is not finished."""


@takes(UptrainOptions)
def uptrain(
    model: str | Path,
    out: str | Path,
    *,
    options: UptrainOptions,
    progress: Reporter = silent,
    notice: Notice = lambda step, scores: None,
) -> UptrainResult:
    """Train a checkpoint and write the best weights as a checkpoint of the same kind.

    Run again after an interruption, it continues where it was saved and comes to the same result. Under `accelerate launch`
    every process calls it; the first writes.

    Args:
        model: what to train, converted or not: directory, or name on the hub.
        out: the new directory. Until the end the run is kept beside it, in `<out>.uptrain`.
        options: see `UptrainOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.
        notice: called with a step and the scores on the held-out windows after it.

    Raises:
        UsageError, CheckpointError, FamilyError, DataError: what is asked does not fit together; before any work.
        OutputError: `out` cannot be used, is in use, or cannot be written.
        TrainingError: a loss is not finite. MissingDependencyError: an extra is not installed.
    """
    job = _Uptraining.check(model, Path(out), options)
    here = launched(job.device)
    check_trackers(options.report_to or ())
    store = RunStore(job.out.with_name(job.out.name + SUFFIX), options.early_stopping_patience)
    asked = job.asked(here.num_processes)
    with ExitStack() as stack:
        if here.is_main_process:
            stack.enter_context(claimed_directory(job.out, SUFFIX, RUN_FILES))
            store.begin(asked, options.restart)
        here.wait_for_everyone()
        begun = store.progress()
        here.wait_for_everyone()  # nobody writes before everybody has read
        ended, rate = job.trained(store, here, progress if here.is_main_process else silent, notice)
        if here.is_main_process:
            job.write(store, ended, rate, asked, progress)
        here.wait_for_everyone()
    return UptrainResult.of(job.out, rate, begun.step, ended, here.is_main_process)


@dataclass(frozen=True)
class _Uptraining:
    """One run, checked: everything is open and read, nothing is loaded."""

    source: Source
    teacher: Source | None
    out: Path
    options: UptrainOptions
    text: Text
    task: LanguageTask
    device: str

    @classmethod
    def check(cls, model: str | Path, out: Path, options: UptrainOptions) -> _Uptraining:
        device = check_device(options.device)
        source = Source.open(model)
        start = source.checkpoint
        if not is_causal_model(start.config):
            raise UsageError(
                f"uptrain is for causal language models so far; {model} is a {source.spec.model_type}"
            )
        check_cache_types(options.kv_cache, source.spec)
        teacher = None if options.teacher is None else Source.open(options.teacher)
        check_output(start, out, options.overwrite or (out / MANIFEST_NAME).exists())
        if teacher is not None:
            check_fit(start, teacher.checkpoint, options)
            if out.exists() and out.resolve() == teacher.path.resolve():
                raise OutputError(
                    f"{out}: is the teacher, which is never written to. Choose another directory."
                )
        text: Any = options.read()
        windows = _windows(start, teacher.checkpoint if teacher else None, text, options)
        train_windows, held_out = split_windows(windows, options.held_out)
        task = LanguageTask(train_windows, held_out, options.weights, options.temperature, options.top_k)
        return cls(source, teacher, out, options, text, task, device)

    def asked(self, processes: int) -> dict[str, Any]:
        """What decides the result: a run with another one is not continued."""
        given = self._options()
        return {
            "model": self.source.fingerprint,
            "teacher": self.teacher.fingerprint if self.teacher else None,
            "text": self.text.sha256,
            "processes": processes,
            **given,
        }

    def _options(self) -> dict[str, Any]:
        """The options but for those that name models, texts and places."""
        aside = {each.name for each in fields(DeviceOptions)} | {
            "teacher",
            "text",
            "report_to",
            "restart",
            "overwrite",
        }
        return {
            name: value
            for name, value in asdict(self.options).items()
            if name not in aside and not name.startswith("dataset")
        }

    def trained(
        self, store: RunStore, here: Any, progress: Reporter, notice: Notice
    ) -> tuple[Progress, float]:
        """Train from where the store is to the end; again from the start, slower, where no step did better than it.

        Args:
            store: begun. here: accelerate's `PartialState`. progress, notice: see `uptrain`.

        Returns:
            How it ended, and with which learning rate.
        """
        schedule = StepSchedule.of(self.options, self.task.sizes[0], here.num_processes)
        attempt = store.attempt()
        here.wait_for_everyone()
        while True:
            may_repeat = attempt < self.options.slower
            ended = store.progress()
            if not (
                ended.step >= schedule.max_steps or ended.stopped or (may_repeat and ended.harmed(schedule))
            ):
                ended = self._attempt(store, schedule, attempt, here.num_processes, progress, notice)
            here.wait_for_everyone()
            if not (may_repeat and ended.harmed(schedule)):
                return ended, self.options.rate(attempt)
            attempt += 1
            if here.is_main_process:
                store.begin_again(attempt)
            here.wait_for_everyone()

    def _attempt(
        self,
        store: RunStore,
        schedule: StepSchedule,
        attempt: int,
        processes: int,
        progress: Reporter,
        notice: Notice,
    ) -> Progress:
        """Train from where the store is, with the learning rate of an attempt."""
        options = replace(self.options, learning_rate=self.options.rate(attempt))
        student, teacher, plain = self.models()
        spec, done = self.source.spec, store.progress().step
        left = (schedule.max_steps - done) * options.per_step(processes) * (options.window - 1)
        with (
            rounded_cache(plain, spec, check_cache_types(options.kv_cache, spec)),
            progress("uptrain", left, "tokens") as advance,
        ):
            run = (student, teacher, self.task, options, schedule, store, self.device, advance, notice)
            return train(Training(*run, harm_ends=attempt < options.slower))

    def models(self) -> tuple[Any, Any, Any]:
        """Student and teacher, loaded; what trains of the student is marked. Last the student without what LoRA adds."""
        options, spec = self.options, self.source.spec
        plain: Any = load(self.source.path, dtype=torch.float32)  # updates are too small for half precision
        check_writable(plain, spec, options, self.source.checkpoint.tensors)
        with torch.random.fork_rng([]):
            torch.manual_seed(options.seed)  # of LoRA's first values
            student: Any = prepare_student(plain, spec, options)
        if self.teacher is None:
            return student, None, plain
        return student, load(self.teacher.path, dtype=getattr(torch, options.precision)), plain

    def write(
        self, store: RunStore, ended: Progress, rate: float, asked: Mapping[str, Any], progress: Reporter
    ) -> None:
        """The best weights as a checkpoint, with what is to be known about the run."""
        record = self.record(asked, ended, rate)
        files = {
            UPTRAIN_FILE: pretty(record),
            METRICS_FILE: store.metrics(),
            CARD_FILE: uptrained_card(read_card(self.source.checkpoint), record).encode(),
        }
        best = store.weights(ended.best_step) if ended.best_step else {}
        trained = Trained(best, files, {"uptrain": dict(asked)})
        with progress("write", self.source.checkpoint.nbytes, "bytes") as advance:
            overwrite = self.options.overwrite
            write_trained(self.source, self.out, trained, self.options, overwrite=overwrite, progress=advance)

    def record(self, asked: Mapping[str, Any], ended: Progress, rate: float) -> dict[str, Any]:
        """The content of `gqakit-uptrain.json`."""
        options, teacher = self.options, self.teacher
        train_windows, held_out = self.task.sizes
        return {
            "gqakit_version": __version__,
            "model": {"name": self.source.short_name, "fingerprint": asked["model"]},
            "teacher": {"name": teacher.short_name, "fingerprint": asked["teacher"]} if teacher else None,
            "text": {
                "name": self.text.name,
                "sha256": self.text.sha256,
                "train_windows": train_windows,
                "held_out_windows": held_out,
            },
            "losses": asdict(self.task.weights),
            "options": self._options(),
            "processes": asked["processes"],
            "examples_per_step": options.per_step(asked["processes"]),
            "result": {**asdict(ended), "learning_rate": rate},
            "versions": versions(),
        }


def check_fit(start: Checkpoint, master: Checkpoint, options: UptrainOptions) -> None:
    """Refuse a teacher that cannot teach this student.

    Raises:
        CheckpointError: naming everything that differs. UsageError: the windows are too long for one of them.
    """
    keys = ["vocab_size", *(["num_hidden_layers", "hidden_size"] if options.weights.hidden else [])]
    different = [
        f"{key} is {master.config.get(key)} in the teacher, {start.config.get(key)} in the student"
        for key in keys
        if master.config.get(key) != start.config.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{master.path} cannot teach {start.path}: {'; '.join(different)}. Give the model it was made of as `teacher`"
            + (", or leave out `hidden`" if options.weights.hidden and len(different) < 3 else "")
        )
    for checkpoint in (start, master):
        limit = checkpoint.config.get("max_position_embeddings")
        if isinstance(limit, int) and options.window > limit:
            raise UsageError(f"`window` is {options.window}, {checkpoint.path} takes at most {limit} tokens")


def _windows(start: Checkpoint, master: Checkpoint | None, text: Text, options: UptrainOptions) -> Tensor:
    """The text in windows, `[windows, window]`, as the student's tokenizer cuts it.

    Raises:
        CheckpointError: the teacher's tokenizer gives other tokens. DataError: too little text.
    """
    tokenizer = load_tokenizer(start)
    if master is not None and (master.path / "tokenizer_config.json").is_file():
        sample = text.content[:2000]
        ours, theirs = (
            t(sample, add_special_tokens=False)["input_ids"] for t in (tokenizer, load_tokenizer(master))
        )
        if ours != theirs:
            raise CheckpointError(
                f"{master.path} cannot teach {start.path}: their tokenizers cut the text into different tokens"
            )
    windows = token_windows(tokenizer, text, window=options.window, tokens=options.tokens or None)
    if int(windows.max()) >= start.config.get("vocab_size", 2**31):
        raise DataError(
            f"the tokenizer gives token {int(windows.max())}, the model knows {start.config['vocab_size']}"
        )
    return windows
