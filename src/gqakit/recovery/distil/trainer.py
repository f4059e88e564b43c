"""The training run: transformers' Trainer with a teacher, losses that are sums, checkpoints that are whole or absent."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback

from gqakit.errors import TrainingError, UsageError
from gqakit.progress import Advance
from gqakit.recovery.distil.arguments import trainer_arguments
from gqakit.recovery.distil.data import RunSampler
from gqakit.recovery.distil.options import StepSchedule, TrainOptions
from gqakit.recovery.distil.store import WEIGHTS_FILE, Progress, RunStore
from gqakit.recovery.distil.task import Batch, Task

Notice = Callable[[int, Mapping[str, float]], None]
"""Called with a step and the scores on the held-out examples after it."""


@dataclass(frozen=True)
class Training:
    """What is trained, and where it is kept.

    Attributes:
        student: what trains has `requires_grad`. teacher: stays as it is; None where the task needs none.
        task: what they learn. options, schedule: how.
        store: begun. device: "cpu" or "cuda".
        advance: called with the items just trained on, in the first process. notice: see `Notice`, likewise.
        harm_ends: the first evaluation after the start ends the run if it is far worse.
    """

    student: nn.Module
    teacher: nn.Module | None
    task: Task
    options: TrainOptions
    schedule: StepSchedule
    store: RunStore
    device: str
    advance: Advance = lambda items: None
    notice: Notice = lambda step, scores: None
    harm_ends: bool = False


def train(training: Training) -> Progress:
    """Train from where the store is to the end, which may come early. The student then has the last step's weights.

    Every process of a launch calls it. The caller's random numbers stay as they were.

    Raises:
        TrainingError: a loss or a gradient is not finite. OutputError: a state cannot be saved or read.
        MissingDependencyError, UsageError: a tracker or the launch cannot be served.
    """
    latest = training.store.latest()
    with _unchanged_rng():
        trainer = DistilTrainer(training)
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
        return Progress.of(trainer.state, training.options.early_stopping_patience)


class DistilTrainer(Trainer):
    """The Trainer on a `Task`. Its dataset is the numbers of the examples; the task turns them into batches."""

    def __init__(self, training: Training) -> None:
        self.training, self.task = training, training.task
        self._parts: dict[str, Tensor] = {}  # sums of the step's losses, this process's share
        self._items = 0  # of the step, over all processes
        patience = training.options.early_stopping_patience
        train_size, held_out_size = training.task.sizes
        super().__init__(
            model=training.student,  # pyright: ignore[reportArgumentType]  # any module will do
            args=trainer_arguments(
                training.options,
                training.schedule,
                training.store.directory,
                training.device,
                fresh=training.store.latest() is None,
            ),
            train_dataset=range(train_size),  # pyright: ignore[reportArgumentType]
            eval_dataset=range(held_out_size),  # pyright: ignore[reportArgumentType]
            data_collator=partial(training.task.batch, held_out=False),  # pyright: ignore[reportArgumentType]
            callbacks=[_Watcher(self), *([EarlyStoppingCallback(patience)] if patience else [])],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the items of the whole step
        self.teacher = self._placed_teacher(training.teacher)

    def create_accelerator_and_postprocess(self) -> None:
        """The launch's accelerator, if it is of a kind that was ever run."""
        super().create_accelerator_and_postprocess()
        accelerator = self.accelerator
        kind = accelerator.distributed_type.value
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
            raise UsageError(f"uptraining runs alone, under DDP and under FSDP2; this launch asks for {kind}")
        if kind == "FSDP":
            if not accelerator.is_fsdp2:
                raise UsageError("uptraining shards with FSDP2; set fsdp_version: 2 in the accelerate config")
            plugin: Any = accelerator.state.fsdp_plugin
            # Whole, not sharded: the best weights are read again without the launch.
            plugin.state_dict_config = plugin.optim_state_dict_config = None
            plugin.set_state_dict_type("FULL_STATE_DICT")

    def _placed_teacher(self, teacher: nn.Module | None) -> nn.Module | None:
        """The frozen teacher: sharded where the student is, else whole on each device. It needs no gradient averaging."""
        if teacher is None:
            return None
        teacher = teacher.requires_grad_(False).eval()
        if self.accelerator.is_fsdp2:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            return fsdp2_prepare_model(self.accelerator, teacher)
        return teacher.to(self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> RunSampler:
        options, schedule = self.training.options, self.training.schedule
        length = schedule.max_steps * options.per_step(self.accelerator.num_processes)
        return RunSampler(self.task.sizes[0], length, options.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> int:
        """Items of a whole step, over all micro-batches and processes: what its losses are divided by."""
        own = torch.tensor([float(sum(map(self.task.items, batch_samples)))], device=device)
        self._items = int(self.accelerator.reduce(own, "sum")[0])  # pyright: ignore[reportIndexIssue]
        self.state.num_input_tokens_seen += self._items
        return self._items

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch's part of the step's mean loss."""
        losses = self.task.losses(model, self.teacher, inputs, every=False)
        for name, part in losses.parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + part
        # Processes average their gradients, but the mean is over the items of all of them.
        return losses.total * (self.accelerator.num_processes / num_items_in_batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; before the step is taken, it and the loss must be finite."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a DTensor under FSDP2
        loss = float(self._tr_loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {loss:.4g} and the norm of its gradient {norm:.4g}; "
                f"nothing of this step was kept, {self.training.store.last_good()}. Start again with `restart=True` and "
                "a lower `learning_rate`."
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the losses, summed over processes; the Trainer's summary of this attempt is left out."""
        if "train_runtime" in logs:
            return
        if "loss" in logs and self._parts:
            sums = torch.stack([part.float() for part in self._parts.values()])
            means: Any = self.accelerator.reduce(sums, "sum")
            logs.update(zip(self._parts, (means / self._items).tolist(), strict=True))
            self._parts = {}
        taken = self.state.global_step * self.training.options.per_step(self.accelerator.num_processes)
        self.state.epoch = taken / self.task.sizes[0]  # the Trainer takes the whole run for one
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the held-out examples."""
        model: Any = self.model_wrapped
        batch_size = self.args.per_device_eval_batch_size
        found = evaluate(model, self.teacher, self.task, batch_size, self.accelerator)
        if not math.isfinite(found["loss"]):
            raise TrainingError(
                f"after step {self.state.global_step} the loss on what is held out is {found['loss']}; "
                f"{self.training.store.last_good()}. Start again with `restart=True` and a lower `learning_rate`."
            )
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if (
            self.state.global_step == 0
        ):  # the start counts: the Trainer itself has no best before its first step
            self.state.best_metric, self.state.best_global_step = metrics["eval_loss"], 0
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best so far; if it is, or if the run ends with it, it is saved."""
        best = super()._determine_best_metric(metrics, trial)
        if best or self.control.should_training_stop:
            self.control.should_save = True
        return best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, store = self.state.global_step, self.training.store
        with store.saving(step):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process wrote its random numbers
            if self.args.should_save:
                store.finish(step, self.state.best_global_step or 0)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """What training changes and nothing else, of any model, LoRA's too."""
        if not self.args.should_save or output_dir is None:
            return
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        state = model.state_dict() if state_dict is None else state_dict
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        tensors = {name: state[name].contiguous() for name in _trained_names(model) if name in state}
        save_file(tensors, Path(output_dir) / WEIGHTS_FILE, metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """No word about frozen weights, which no checkpoint of a run holds."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: nobody reads it, and counting parameters takes time in each step."""
        return 0


class _Watcher(TrainerCallback):
    """Times steps, reports them, keeps metrics, and sees to a last evaluation."""

    def __init__(self, trainer: DistilTrainer) -> None:
        self.trainer, self.training, self.store = trainer, trainer.training, trainer.training.store
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.store.rewrite_metrics(state.log_history)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training.advance(self.trainer._items)
        if state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        line = state.log_history[-1]
        line["tokens"] = state.num_input_tokens_seen
        if "loss" in line:
            line["seconds"] = round(time.monotonic() - self.started, 4)
        if state.is_world_process_zero:
            self.store.log(line)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
            self.training.notice(state.global_step, scores)
        if self.training.harm_ends and Progress.of(state, 0).harmed(self.training.schedule):
            control.should_training_stop = True


@torch.no_grad()
def evaluate(
    student: nn.Module, teacher: nn.Module | None, task: Task, batch_size: int, accelerator: Any
) -> dict[str, float]:
    """Means over the held-out examples: `loss`, what is minimised, and the task's own summary.

    Processes take batches in turn; one that has none left runs the first again and counts nothing, for sharded models
    run only together.

    Args:
        student, teacher, task: as in `Training`. batch_size: examples at a time.
        accelerator: accelerate's; says which process this is, where it runs and how to add up over all.
    """
    student.eval()
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    examples = list(range(task.sizes[1]))
    batches = [examples[at : at + batch_size] for at in range(0, len(examples), batch_size)]
    sums: dict[str, float] = {}
    for turn in range(-(-len(batches) // processes)):
        mine = turn * processes + rank
        counts = mine < len(batches)
        batch = task.batch(batches[mine if counts else 0], held_out=True)
        losses = task.losses(student, teacher, {k: v.to(device) for k, v in batch.items()}, every=True)
        for name, part in {"loss": losses.total, **losses.parts, "items": task.items(batch)}.items():
            sums[name] = sums.get(name, 0.0) + (float(part) if counts else 0.0)
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    total = accelerator.reduce(values, "sum")
    means = dict(zip(sums, (total / total[-1]).tolist(), strict=True))
    means.pop("items")
    return {"loss": means.pop("loss"), **task.summary(means)}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what a checkpoint of a run holds into the model that was trained."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].copy_(tensor)


def _trained_names(model: nn.Module) -> list[str]:
    """The parameters that train, tied ones once, and the buffers, which a model may change as it trains."""
    training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [*training, *(name for name, _ in model.named_buffers())]


@contextmanager
def _unchanged_rng() -> Iterator[None]:
    """The Trainer seeds Python's, NumPy's and torch's random numbers for the whole process; put them back after it."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
