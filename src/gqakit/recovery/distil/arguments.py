"""Options of a training run as transformers' Trainer has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from gqakit.errors import MissingDependencyError
from gqakit.recovery.distil.options import StepSchedule, TrainOptions

PROJECT = "gqakit-uptrain"


def trainer_arguments(
    options: TrainOptions, schedule: StepSchedule, directory: Path, device: str, *, fresh: bool
) -> TrainingArguments:
    """A run's options as the Trainer has them.

    Args:
        options, schedule: how to train. directory: of the run. device: "cpu" or "cuda".
        fresh: the run begins, so the start is evaluated.
    """
    schedule_type = options.lr_scheduler_type
    arguments = TrainingArguments(
        output_dir=str(directory),
        use_cpu=device == "cpu",
        bf16=options.precision == "bfloat16",
        max_steps=schedule.max_steps,
        eval_strategy="steps",
        eval_steps=schedule.eval_steps,
        eval_on_start=fresh,
        save_steps=schedule.save_steps,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=options.early_stopping_patience > 0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[*(options.report_to or ())],
        run_name=PROJECT,
        project=PROJECT,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
        optim="adamw_torch_fused",  # a small model's step is short, and its optimiser a fifth of it otherwise
        lr_scheduler_type="constant_with_warmup" if schedule_type == "constant" else schedule_type,
        per_device_eval_batch_size=options.per_device_train_batch_size,
        ddp_find_unused_parameters=False,
        **{name: getattr(options, name) for name in _SAME_NAMES},
        **{_RECOMPUTE: options.gradient_checkpointing, f"{_RECOMPUTE}_kwargs": {"use_reentrant": False}},
    )
    # One process, one GPU: several are for a launcher. (The Trainer would split batches by DataParallel.)
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


_SAME_NAMES = (
    *(
        "learning_rate",
        "warmup_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "weight_decay",
    ),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed"),
)
_NAMES = {each.name for each in fields(TrainingArguments)}
# transformers 5.23 renamed it.
_RECOMPUTE = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"


def check_trackers(names: Sequence[str]) -> None:
    """Raise `MissingDependencyError` for a tracker whose package is not installed."""
    from accelerate.tracking import get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in available:
            raise MissingDependencyError(f"`report_to={name}` needs the package {name}: pip install {name}")
