"""The training loop: steps, evaluations, saving, resuming. It knows nothing of language; see `task.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gqakit.errors import TrainingError
from gqakit.recovery.distil.data import Sampler, micro_batches, mixed_seed
from gqakit.recovery.distil.devices import (
    Prepared,
    optimiser_tensors,
    restore_optimiser,
    restore_weights,
    trained_weights,
)
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.state import Progress, Store
from gqakit.recovery.distil.task import Batch, Task

Notice = Callable[[int, Mapping[str, float]], None]
"""Called with a step and what the evaluation after it said."""


@dataclass(frozen=True)
class Pace:
    """The numbers a run goes by, all of them above zero."""

    max_steps: int
    eval_steps: int
    save_steps: int

    @classmethod
    def of(cls, options: UptrainOptions, examples: int, per_step: int) -> Pace:
        """What the options come to for so many examples and so many a step."""
        steps = options.steps(examples, per_step)
        every = options.eval_steps or max(1, steps // 10)
        return cls(steps, every, options.save_steps or every)


class Loop:
    """One run.

    Args:
        prepared: the models. task: what they learn. options, pace: how.
        store: where it is kept. Only the main process writes.
        advance: called with the items just trained on. notice: see `Notice`.
    """

    def __init__(
        self,
        prepared: Prepared,
        task: Task,
        options: UptrainOptions,
        pace: Pace,
        store: Store,
        advance: Callable[[int], None],
        notice: Notice,
    ) -> None:
        from transformers import get_scheduler

        self.prepared, self.task, self.options, self.pace, self.store = prepared, task, options, pace, store
        self.advance, self.notice = advance, notice
        self.accelerator = prepared.accelerator
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        per_step = options.per_device_batch_size * options.gradient_accumulation_steps * self.processes
        self.sampler = Sampler(task.sizes[0], per_step, options.seed)
        name = options.lr_scheduler_type
        self.scheduler = get_scheduler(
            "constant_with_warmup" if name == "constant" else name,
            prepared.bare_optimizer,
            num_warmup_steps=options.warmup_steps,
            num_training_steps=pace.max_steps,
        )

    def run(self, progress: Progress) -> Progress:
        """Train from where `progress` is to the end, which may come early.

        Raises:
            TrainingError: loss or gradient is not finite.
            OutputError: a state cannot be saved.
        """
        devices = (
            [self.accelerator.device.index or 0] if self.accelerator.device.type == "cuda" else []
        )  # untested: CUDA
        with torch.random.fork_rng(devices):
            if progress.step:
                self._restore(progress)
            elif progress.best is None:
                progress = self._evaluated(progress)
            while progress.step < self.pace.max_steps and not progress.stopped:
                progress = self._after(self._step(progress))
        return progress

    def _step(self, progress: Progress) -> Progress:
        started = time.monotonic()
        optimizer, student = self.prepared.optimizer, self.prepared.student
        student.train()
        number = progress.step
        share = micro_batches(
            self.sampler.step(number),
            self.options.per_device_batch_size,
            self.processes,
            self.rank,
            self.options.gradient_accumulation_steps,
        )
        batches = [self.task.batch(indices, held_out=False) for indices in share]
        items = int(self._sum(torch.tensor([float(sum(map(self.task.items, batches)))]))[0])
        sums: dict[str, Any] = {}
        for micro, batch in enumerate(batches):
            # From the numbers alone, so that a resumed run draws what an uninterrupted one would.
            torch.manual_seed(mixed_seed(self.options.seed, number, micro, self.rank))
            last = micro == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(student):
                losses = self.task.losses(student, self.prepared.teacher, self._on_device(batch), every=False)
                # Processes average their gradients; the mean is over the items of all of them.
                self.accelerator.backward(losses.total * (self.processes / items))
            for name, part in {"loss": losses.total.detach(), **losses.parts}.items():
                sums[name] = sums.get(name, 0.0) + part
        norm = self._clip()
        means = {name: value / items for name, value in self._summed(sums).items()}
        self._check_finite(number + 1, means["loss"], norm)
        rate = float(self.scheduler.get_last_lr()[0])
        optimizer.step()
        self.scheduler.step()
        optimizer.zero_grad()
        seconds = time.monotonic() - started
        self.advance(items)
        after = replace(
            progress,
            step=number + 1,
            tokens=progress.tokens + items,
            seconds=progress.seconds + seconds,
        )
        self._log(after, {**means, "grad_norm": norm, "learning_rate": rate, "seconds": round(seconds, 4)})
        return after

    def _clip(self) -> float:
        limit = self.options.max_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(self.prepared.student.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step}: the loss is {loss:.4g} and the norm of its gradient {norm:.4g}; nothing of this step was "
                f"kept, {self.store.last_good()}. Start again with --restart and a lower --learning-rate."
            )

    def _after(self, progress: Progress) -> Progress:
        """Evaluate and save where it is time."""
        done = progress.step == self.pace.max_steps
        if done or progress.step % self.pace.eval_steps == 0:
            progress = self._evaluated(progress)
            early = 0 < self.options.patience <= progress.worse
            progress = replace(progress, stopped=early)
        if done or progress.stopped or progress.step % self.pace.save_steps == 0:
            weights, optimiser = trained_weights(self.prepared), optimiser_tensors(self.prepared)
            if self.accelerator.is_main_process:
                self.store.save_state(progress, weights, optimiser)
            self.accelerator.wait_for_everyone()
        return progress

    def _evaluated(self, progress: Progress) -> Progress:
        scores = evaluate(self.prepared, self.task, self.options.per_device_batch_size)
        if not math.isfinite(scores["loss"]):
            raise TrainingError(
                f"after step {progress.step} the loss on what is held out is {scores['loss']}; "
                f"{self.store.last_good()}. Start again with --restart and a lower --learning-rate."
            )
        self._log(progress, {f"eval_{name}": value for name, value in scores.items()})
        self.notice(progress.step, scores)
        after = progress.evaluated(scores)
        if after.best_step == progress.step > 0:
            weights = trained_weights(self.prepared)
            if self.accelerator.is_main_process:
                self.store.save_best(after.best_step, weights)
        return after

    def _restore(self, progress: Progress) -> None:
        weights, optimiser = (
            self.store.load_state(progress.step) if self.accelerator.is_main_process else ({}, {})
        )
        restore_weights(self.prepared, weights)
        restore_optimiser(self.prepared, optimiser)
        self._wind_schedule(progress.step)

    def _wind_schedule(self, step: int) -> None:
        """Put the schedule where it is after so many steps: it is a function of their number."""
        schedule: Any = self.scheduler
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [base * factor(step) for base, factor in pairs]
        schedule.last_epoch, schedule._step_count, schedule._last_lr = step, step + 1, rates
        for group, rate in zip(self.prepared.bare_optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _log(self, progress: Progress, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.store.log({"step": progress.step, "tokens": progress.tokens, **values})
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=progress.step)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _sum(self, values: Tensor) -> Tensor:
        return _reduced(self.prepared, values)

    def _summed(self, sums: Mapping[str, Any]) -> dict[str, float]:
        values = self._sum(torch.stack([torch.as_tensor(value).float() for value in sums.values()]))
        return dict(zip(sums, values.tolist(), strict=True))


@torch.no_grad()
def evaluate(prepared: Prepared, task: Task, batch_size: int) -> dict[str, float]:
    """Means over the held-out examples: `loss`, what was minimised, and the task's own summary.

    Processes take batches in turn; one that has none left runs the first again and counts nothing, for sharded models
    run only together.
    """
    accelerator, student = prepared.accelerator, prepared.student
    student.eval()
    examples = list(range(task.sizes[1]))
    batches = [examples[at : at + batch_size] for at in range(0, len(examples), batch_size)]
    rounds = -(-len(batches) // accelerator.num_processes)
    sums: dict[str, float] = {}
    for turn in range(rounds):
        mine = turn * accelerator.num_processes + accelerator.process_index
        counts = mine < len(batches)
        batch = task.batch(batches[mine if counts else 0], held_out=True)
        placed = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        losses = task.losses(student, prepared.teacher, placed, every=True)
        for name, part in {"loss": losses.total, **losses.parts, "items": task.items(batch)}.items():
            sums[name] = sums.get(name, 0.0) + (float(part) if counts else 0.0)
    values = _reduced(prepared, torch.tensor(list(sums.values()), dtype=torch.float64))
    means = dict(zip(sums, (values / values[-1]).tolist(), strict=True))
    means.pop("items")
    loss = means.pop("loss")
    return {"loss": loss, **task.summary(means)}


def _reduced(prepared: Prepared, values: Tensor) -> Tensor:
    """The sum over all processes."""
    placed: Any = prepared.accelerator.reduce(values.to(prepared.accelerator.device), "sum")
    return placed.cpu()
