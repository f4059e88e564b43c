"""`uptrain`: train a converted checkpoint towards its teacher, or on text alone."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit import __version__
from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, check_output, claimed_directory
from gqakit.checkpoint.jsonio import pretty
from gqakit.conversion.files import CARD_FILE, METRICS_FILE, UPTRAIN_FILE
from gqakit.data.text import Text, read_text, token_windows
from gqakit.errors import CheckpointError, DataError, OutputError, UsageError, unknown_name
from gqakit.models.load import auto_class, load
from gqakit.models.running import check_device, load_tokenizer
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.progress import Reporter, silent
from gqakit.recovery.distil.data import split_windows
from gqakit.recovery.distil.devices import PROJECT, accelerated, from_main, prepare
from gqakit.recovery.distil.export import read_card, write_trained
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.loop import Loop, Pace
from gqakit.recovery.distil.model_card import uptrained_card
from gqakit.recovery.distil.options import TRACKERS, UptrainOptions
from gqakit.recovery.distil.state import STORE_FILES, Progress, Store
from gqakit.recovery.distil.trainable import (
    check_writable,
    checkpoint_activations,
    parameter_groups,
    prepare_student,
)

SUFFIX = ".uptrain"


@dataclass(frozen=True)
class UptrainResult:
    """What `uptrain` did.

    Attributes:
        out: where it went.
        step: optimiser steps done. best_step: the one whose weights were kept; 0 for those it began with.
        tokens: predicted tokens trained on. seconds: spent in training steps.
        before, after: on the held-out windows, at the start and with the weights that were kept: `loss`, `perplexity` and,
            with a teacher, `kl`.
        resumed_from: the step an interrupted run was continued from; 0 for a new one.
        stopped_early: whether `patience` ran out.
        main: whether this is the process that wrote it; one of several does.
    """

    out: Path
    step: int
    best_step: int
    tokens: int
    seconds: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    resumed_from: int
    stopped_early: bool
    main: bool = True


def work_directory(out: Path) -> Path:
    """Where a run is kept while it is not finished."""
    return out.with_name(out.name + SUFFIX)


def uptrain(
    model: str,
    out: Path,
    *,
    teacher: str | None = None,
    text: Text | Sequence[str | Path] = ("calibration",),
    options: UptrainOptions | None = None,
    device: str = "auto",
    trackers: Sequence[str] = (),
    restart: bool = False,
    overwrite: bool = False,
    progress: Reporter = silent,
    notice: Callable[[int, Mapping[str, float]], None] = lambda step, scores: None,
) -> UptrainResult:
    """Train a checkpoint and write the best weights as a checkpoint of the same kind.

    Run again after an interruption, it goes on where it was saved and comes to the same result. Under `accelerate launch`
    every process calls it; the first writes.

    Args:
        model: what to train, converted or not.
        out: the new directory. Until the end the run is kept beside it, in `<out>.uptrain`.
        teacher: the model to learn from, usually the one `model` was made of; None learns from the text alone.
        text: a `Text`, or files, or "calibration" for the text that comes with gqakit.
        options: see `UptrainOptions`.
        device: "cpu", "cuda" or "auto".
        trackers: of "tensorboard", "wandb", "trackio"; metrics are written to a file in any case.
        restart: begin anew where an interrupted run lies.
        overwrite: replace a checkpoint in `out`.
        progress: see the package.
        notice: called with a step and the scores on the held-out windows after it.

    Raises:
        UsageError, CheckpointError, FamilyError, DataError: what is asked does not fit together; before any work.
        OutputError: `out` cannot be used, is in use, or cannot be written.
        TrainingError: a loss is not finite. MissingDependencyError: an extra is not installed.
    """
    options = options or UptrainOptions()
    for name in trackers:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
    device = check_device(device)
    weights = options.weights(teacher is not None)
    opened = Source.open(model)
    start, spec = opened.checkpoint, opened.spec
    if auto_class(start.config) != "AutoModelForCausalLM":
        raise UsageError(f"uptrain is for causal language models so far; {model} is a {spec.model_type}")
    master = Checkpoint.open(teacher) if teacher is not None else None
    check_output(start, out, overwrite or (out / MANIFEST_NAME).exists())
    if master is not None:
        check_fit(start, master, options, weights.hidden > 0)
        if out.exists() and out.resolve() == master.path.resolve():
            raise OutputError(f"{out}: is the teacher, which is never written to. Choose another directory.")
    content = text if isinstance(text, Text) else read_text(text)
    train, held_out = split_windows(_windows(start, master, content, options), options.held_out)
    task = LanguageTask(train, held_out, weights, options.temperature, options.top_k)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(device, options.dtype, trackers))
        per_step = (
            options.per_device_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
        )
        pace = Pace.of(options, len(train), per_step)
        job = {
            "model": start.fingerprint(),
            "teacher": master.fingerprint() if master else None,
            "text": content.sha256,
            "processes": accelerator.num_processes,
            **asdict(options),
        }
        store = Store(work_directory(out))
        if accelerator.is_main_process:
            stack.enter_context(claimed_directory(out, SUFFIX, STORE_FILES))
            begun = store.begin(job, restart)
        else:
            begun = Progress()
        begun = from_main(accelerator, begun)
        if trackers:
            accelerator.init_trackers(PROJECT, config={k: v for k, v in job.items() if v is not None})
        ended = begun
        if begun.step < pace.max_steps and not begun.stopped:
            ended = _train(
                start,
                spec,
                master,
                task,
                options,
                pace,
                store,
                begun,
                accelerator,
                progress,
                notice,
                per_step,
            )
        if trackers:
            accelerator.end_training()
        if accelerator.is_main_process:
            record = _record(start, model, master, teacher, content, task, options, job, ended, per_step)
            files = {
                UPTRAIN_FILE: pretty(record),
                METRICS_FILE: store.metrics(),
                CARD_FILE: uptrained_card(read_card(start), record).encode(),
            }
            best = store.load_best(ended.best_step) if ended.best_step else {}
            with progress("write", start.nbytes, "bytes") as advance:
                write_trained(
                    start,
                    spec,
                    out,
                    trained=best,
                    options=options,
                    files=files,
                    job={"uptrain": job},
                    overwrite=overwrite,
                    progress=advance,
                )
        accelerator.wait_for_everyone()
    return UptrainResult(
        out=out,
        step=ended.step,
        best_step=ended.best_step,
        tokens=ended.tokens,
        seconds=ended.seconds,
        before=ended.first or {},
        after=ended.best_scores or {},
        resumed_from=begun.step,
        stopped_early=ended.stopped,
        main=accelerator.is_main_process,
    )


def _train(
    start: Checkpoint,
    spec: ModelSpec,
    master: Checkpoint | None,
    task: LanguageTask,
    options: UptrainOptions,
    pace: Pace,
    store: Store,
    begun: Progress,
    accelerator: Any,
    progress: Reporter,
    notice: Callable[[int, Mapping[str, float]], None],
    per_step: int,
) -> Progress:
    """Load, wrap, train."""
    student: Any = load(start.path, dtype=torch.float32)  # updates are too small for half precision
    check_writable(student, spec, options, start.tensors)
    blocks = {type(spec.block(student, 0)).__name__}
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        student = prepare_student(student, spec, options)
    if options.gradient_checkpointing:
        checkpoint_activations(student)
    reference = None
    if master is not None:
        reference = load(master.path, dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32)
        blocks |= set(getattr(reference, "_no_split_modules", None) or ())
    optimizer = torch.optim.AdamW(
        parameter_groups(student, options.weight_decay),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
    )
    prepared = prepare(accelerator, student, reference, optimizer, sorted(blocks))
    left = (pace.max_steps - begun.step) * per_step * (options.window - 1)
    reporter = progress if accelerator.is_main_process else silent
    with reporter("uptrain", left, "tokens") as advance:
        loop = Loop(
            prepared,
            task,
            options,
            pace,
            store,
            advance,
            notice if accelerator.is_main_process else _unheard,
        )
        return loop.run(begun)


def _unheard(step: int, scores: Mapping[str, float]) -> None:
    """Evaluations are told by the first process alone."""


def check_fit(start: Checkpoint, master: Checkpoint, options: UptrainOptions, hidden: bool) -> None:
    """Refuse a teacher that cannot teach this student.

    Raises:
        CheckpointError: naming everything that differs.
    """
    keys = ["vocab_size", *(["num_hidden_layers", "hidden_size"] if hidden else [])]
    different = [
        f"{key} is {master.config.get(key)} in the teacher, {start.config.get(key)} in the student"
        for key in keys
        if master.config.get(key) != start.config.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{master.path} cannot teach {start.path}: {'; '.join(different)}. Give the model it was made of as --teacher"
            + (", or leave out --hidden" if hidden and len(different) < 3 else "")
        )
    for checkpoint in (start, master):
        limit = checkpoint.config.get("max_position_embeddings")
        if isinstance(limit, int) and options.window > limit:
            raise UsageError(f"--window is {options.window}, {checkpoint.path} takes at most {limit} tokens")


def _windows(start: Checkpoint, master: Checkpoint | None, text: Text, options: UptrainOptions) -> Tensor:
    """The text in windows, as the student's tokenizer cuts it.

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


def _record(
    start: Checkpoint,
    model: str,
    master: Checkpoint | None,
    teacher: str | None,
    text: Text,
    task: LanguageTask,
    options: UptrainOptions,
    job: Mapping[str, Any],
    ended: Progress,
    per_step: int,
) -> dict[str, Any]:
    """The content of `gqakit-uptrain.json`."""
    import accelerate
    import transformers

    return {
        "gqakit_version": __version__,
        "model": {"name": Path(model).name, "fingerprint": start.fingerprint()},
        "teacher": {"name": Path(str(teacher)).name, "fingerprint": master.fingerprint()} if master else None,
        "text": {
            "name": text.name,
            "sha256": text.sha256,
            "train_windows": task.sizes[0],
            "held_out_windows": task.sizes[1],
        },
        "losses": asdict(task.weights),
        "options": asdict(options),
        "processes": job["processes"],
        "examples_per_step": per_step,
        "result": asdict(ended),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }
