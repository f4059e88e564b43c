"""`vision-train`: convert an image model, uptrain it, fine-tune it on classes, evaluate it, in one go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gqakit import __version__
from gqakit.checkpoint import Checkpoint, WriteJob, claimed_directory, write_checkpoint
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.jsonio import pretty
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE
from gqakit.data.pixels import PROCESSOR_FILE, PixelTransform
from gqakit.key_driven.attention import UpdateSchedule
from gqakit.key_driven.classifier import train_all_but
from gqakit.key_driven.install import Allocation, freeze, install
from gqakit.key_driven.model_card import vision_card
from gqakit.key_driven.options import FINETUNE, KEY_DRIVEN, UPTRAIN, VisionOptions
from gqakit.key_driven.start import SUFFIX, WORK_FILES, Made, VisionJob, prepare_start
from gqakit.key_driven.tasks import Classes, Features
from gqakit.models.load import load
from gqakit.models.shipping import shipped_code
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.progress import Reporter, silent
from gqakit.recovery.distil.launch import launched, versions
from gqakit.recovery.distil.options import StepSchedule
from gqakit.recovery.distil.store import Progress, RunStore
from gqakit.recovery.distil.trainer import Training, evaluate, put_weights, train

RECORD_FILE, METRICS_FILE = "gqakit-vision.json", "gqakit-vision-metrics.jsonl"
FEATURE_IMAGES = 128
"""Of those held out, on which the distance from the source's features is measured."""
# A classifier has no part in the features, and a mask token none in images without masks.
_NOT_TRAINED = {UPTRAIN: ("classifier", "mask_token"), FINETUNE: ("mask_token",)}

Notice = Callable[[str, int, Mapping[str, float]], None]
"""Called with a phase, a step and the scores on the held-out images after it."""

__all__ = ["VisionResult", "vision_train"]


@dataclass(frozen=True)
class VisionResult:
    """What `vision_train` did.

    Attributes:
        out: where it went. method: which.
        accuracy, loss: of the written checkpoint on the held-out images.
        in_training: the same as the method has it in training, where that is not what is written (`as_published`: batches
            decide at evaluation); else the same numbers.
        features: relative distance of its features from the source's, before and after uptraining, on (at most) 128 of the
            held-out images; None without that.
        allocation: for each layer, query heads of each KV head.
        train_images, held_out_images: their numbers.
        steps: of each phase. seconds: spent in training steps.
        resumed: whether an interrupted run was continued.
    """

    out: Path
    method: str
    accuracy: float
    loss: float
    in_training: Mapping[str, float]
    features: tuple[float, float] | None
    allocation: tuple[Allocation, ...]
    train_images: int
    held_out_images: int
    steps: Mapping[str, int]
    seconds: float
    resumed: bool


@takes(VisionOptions)
def vision_train(
    model: str | Path,
    out: str | Path,
    *,
    options: VisionOptions,
    progress: Reporter = silent,
    notice: Notice = lambda phase, step, scores: None,
) -> VisionResult:
    """Convert an image model, train it, and write a grouped classifier with the allocation that training came to.

    Run again after an interruption, it continues where it was saved and comes to the same result.

    Args:
        model: a ViT or DINOv2 checkpoint, with or without a classifier; or a conversion of one.
        out: the new directory. Until the end the run is kept beside it, in `<out>.vision`.
        options: see `VisionOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`. notice: see `Notice`.

    Raises:
        UsageError, BudgetError, CheckpointError, FamilyError, DataError: what is asked does not fit together.
        OutputError: `out` cannot be used, is in use, or cannot be written.
        TrainingError: a loss is not finite. MissingDependencyError: an extra is not installed.
    """
    job = VisionJob.check(model, Path(out), options)
    launched(job.device, alone="vision-train")
    with ExitStack() as stack:
        stack.enter_context(claimed_directory(job.out, SUFFIX, WORK_FILES))
        stores = {name: RunStore(job.work / name) for name in (UPTRAIN, FINETUNE)}
        begun = {name: store.begin(job.asked, options.restart) for name, store in stores.items()}
        run = _Run(job, prepare_start(job, progress), stores, progress, notice)
        ended = run.train()
        allocation = freeze(run.student, run.source.spec)
        last = ended[FINETUNE].last or {}
        scores = (
            run.evaluated() if options.as_published else last
        )  # what is written was not evaluated in training
        _write(run, _record(job, ended, allocation, scores))
    first = ended.get(UPTRAIN, Progress())
    return VisionResult(
        out=job.out,
        method=options.method,
        accuracy=scores["accuracy"],
        loss=scores["loss"],
        in_training=last,
        features=(first.first["features"], first.last["features"]) if first.first and first.last else None,
        allocation=tuple(allocation),
        train_images=len(job.train),
        held_out_images=len(job.held_out),
        steps={name: each.step for name, each in ended.items()},
        seconds=sum(each.seconds for each in ended.values()),
        resumed=any(each.step for each in begun.values()),
    )


class _Run:
    """The two phases of one run."""

    def __init__(
        self,
        job: VisionJob,
        made: Made,
        stores: Mapping[str, RunStore],
        progress: Reporter,
        notice: Notice,
    ) -> None:
        self.job, self.made, self.stores, self.progress, self.notice = job, made, stores, progress, notice
        options = job.options
        self.source = Source.open(made.student)
        self.transform = PixelTransform(Checkpoint.open(str(made.teacher)))
        self.student: Any = load(made.student, dtype=torch.float32)
        schedule = UpdateSchedule(options.window, options.decay, options.seed)
        install(self.student, self.source.spec, options.method, schedule, as_published=options.as_published)

    def train(self) -> dict[str, Progress]:
        """Both phases; the student then has the last step's weights.

        The last, not the best on the held-out images: what is reported on them is then no choice made by them.
        """
        ended: dict[str, Progress] = {}
        if self.job.options.uptrains:
            few = self.job.held_out.take(range(min(FEATURE_IMAGES, len(self.job.held_out))))
            teacher = load(self.made.teacher, dtype=torch.float32)
            ended[UPTRAIN] = self._phase(UPTRAIN, Features(self.job.train, few, self.transform), teacher)
        ended[FINETUNE] = self._phase(FINETUNE, self._classes, None)
        return ended

    def evaluated(self) -> dict[str, float]:
        """The scores of the student as it is."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=self.job.device == "cpu")
        return evaluate(self.student, None, self._classes, self.job.options.batch_size, accelerator)

    @property
    def _classes(self) -> Classes:
        return Classes(self.job.train, self.job.held_out, self.transform)

    def _phase(self, name: str, task: Features | Classes, teacher: Any) -> Progress:
        options, store = self.job.options.phase(name, task.sizes[0]), self.stores[name]
        begun = store.progress()
        if begun.step < options.max_steps:
            train_all_but(self.student, _NOT_TRAINED[name])
            schedule = StepSchedule.of(options, task.sizes[0])
            left = (schedule.max_steps - begun.step) * options.per_device_train_batch_size
            with self.progress(name, left, "images") as advance:
                job = Training(
                    self.student,
                    teacher,
                    task,
                    options,
                    schedule,
                    store,
                    self.job.device,
                    advance,
                    lambda step, scores: self.notice(name, step, scores),
                )
                begun = train(job)
        put_weights(self.student, store.weights(begun.step))
        return begun


def _write(run: _Run, record: Mapping[str, Any]) -> None:
    """The frozen student as a checkpoint, by way of transformers' own names for its tensors."""
    job = run.job
    ready = job.work / "ready"
    with output_errors(ready):
        shutil.rmtree(ready, ignore_errors=True)
        run.student.to("cpu").save_pretrained(str(ready))
    final = Checkpoint.open(str(ready))
    files = {
        RECORD_FILE: pretty(record),
        METRICS_FILE: b"".join(run.stores[name].metrics() for name in (UPTRAIN, FINETUNE)),
        CARD_FILE: vision_card(record).encode(),
        **shipped_code(final.config["gqakit"]["base_model_type"]),
    }
    processor = run.made.teacher / PROCESSOR_FILE
    if processor.is_file():
        files[processor.name] = processor.read_bytes()
    with run.progress("write", final.nbytes, "bytes") as advance:
        write_checkpoint(
            final,
            job.out,
            WriteJob(
                replaced={},
                config=final.config,
                decides={"vision": job.asked},
                extra_files=files,
                checksum_file=CHECKSUM_FILE,
            ),
            overwrite=job.options.overwrite,
            progress=advance,
        )


def _record(
    job: VisionJob,
    ended: Mapping[str, Progress],
    allocation: list[Allocation],
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """The content of `gqakit-vision.json`."""
    asked, train_images, held_out = job.asked, job.train, job.held_out
    return {
        "gqakit_version": __version__,
        "model": {"name": job.source.short_name, "fingerprint": asked["model"]},
        "teacher": {
            "name": Path(job.options.teacher or job.source.name).name,
            "fingerprint": asked["teacher"],
        },
        "images": {
            "name": train_images.images.name,
            "sha256": asked["images"],
            "train": len(train_images),
            "held_out": len(held_out),
            "held_out_name": held_out.images.name,
            "held_out_sha256": asked["held_out_images"],
            "classes": list(train_images.classes),
        },
        "options": job.recorded,
        "key_driven": job.options.method in KEY_DRIVEN,
        "allocation": [list(each) for each in allocation],
        "phases": {name: asdict(each) for name, each in ended.items()},
        "result": dict(scores),
        "versions": versions(),
    }
