"""`vision-train`: convert an image model, uptrain it, fine-tune it on classes, evaluate it, in one go."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gqakit import __version__
from gqakit.checkpoint import (
    MANIFEST_NAME,
    Checkpoint,
    WriteJob,
    check_output,
    claimed_directory,
    write_checkpoint,
)
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.jsonio import pretty
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE
from gqakit.data.labelled import LabelledImages
from gqakit.data.pixels import PixelTransform
from gqakit.errors import OutputError, UsageError
from gqakit.key_driven.attention import Schedule
from gqakit.key_driven.classifier import train_all_but
from gqakit.key_driven.install import Allocation, freeze, install
from gqakit.key_driven.model_card import vision_card
from gqakit.key_driven.options import KEY_DRIVEN, VisionOptions
from gqakit.key_driven.start import Made, check_start, prepare_start, read_images_for
from gqakit.key_driven.tasks import Classes, Features, ImageTask
from gqakit.models.load import load
from gqakit.models.running import check_device
from gqakit.models.shipping import shipped_code
from gqakit.models.source import Source
from gqakit.progress import Reporter, silent
from gqakit.recovery.distil.devices import Prepared, accelerated, prepare, put_weights
from gqakit.recovery.distil.loop import Loop, Pace, evaluate
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.state import Progress, Store
from gqakit.recovery.distil.trainable import parameter_groups

RECORD_FILE, METRICS_FILE, PREPARED_FILE = (
    "gqakit-vision.json",
    "gqakit-vision-metrics.jsonl",
    "prepared.json",
)
SUFFIX = ".vision"
WORK_FILES = (PREPARED_FILE, *(f"{name}*" for name in ("student", "teacher", "ready", "uptrain", "finetune")))
"""What a run writes into its directory."""
CALIBRATION_IMAGES = 256
FEATURE_IMAGES = 128  # of those held out, on which the distance from the source's features is told
UPTRAIN, FINETUNE = "uptrain", "finetune"
# A classifier has no part in the features, and a mask token none in images without masks.
_NOT_TRAINED = {UPTRAIN: ("classifier", "mask_token"), FINETUNE: ("mask_token",)}

Notice = Callable[[str, int, Mapping[str, float]], None]
"""Called with a phase, a step and the scores on the held-out images after it."""


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
        train_images, held_out_images: how many.
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


def work_directory(out: Path) -> Path:
    """Where a run is kept while it is not finished."""
    return out.with_name(out.name + SUFFIX)


def vision_train(
    model: str,
    out: Path,
    *,
    images: LabelledImages | str | Path,
    test_images: LabelledImages | str | Path | None = None,
    teacher: str | None = None,
    options: VisionOptions | None = None,
    device: str = "auto",
    restart: bool = False,
    overwrite: bool = False,
    progress: Reporter = silent,
    notice: Notice = lambda phase, step, scores: None,
) -> VisionResult:
    """Convert an image model, train it, and write a grouped classifier with the allocation that training came to.

    Run again after an interruption, it goes on where it was saved and comes to the same result.

    Args:
        model: a ViT or DINOv2 checkpoint, with or without a classifier; or a conversion of one.
        out: the new directory. Until the end the run is kept beside it, in `<out>.vision`.
        images: with classes, to train on; see `read_labelled_images`.
        test_images: to evaluate on; None holds some of `images` out.
        teacher: the model a conversion was made of, whose features it is uptrained towards; of a model that is
            converted here it is that.
        options: see `VisionOptions`.
        device: "cpu", "cuda" or "auto".
        restart: begin anew where an interrupted run lies.
        overwrite: replace a checkpoint in `out`.
        progress: see the package. notice: see `Notice`.

    Raises:
        UsageError, BudgetError, CheckpointError, FamilyError, DataError: what is asked does not fit together.
        OutputError: `out` cannot be used, is in use, or cannot be written.
        TrainingError: a loss is not finite. MissingDependencyError: an extra is not installed.
    """
    options = options or VisionOptions()
    device = check_device(device)
    opened = Source.open(model)
    start, spec = opened.checkpoint, opened.spec
    check_start(start, spec, teacher, options)
    check_output(start, out, overwrite or (out / MANIFEST_NAME).exists())
    train, held_out = read_images_for(images, test_images, options)
    master = Checkpoint.open(teacher) if teacher else start
    if out.exists() and out.resolve() == master.path.resolve():
        raise OutputError(f"{out}: is the teacher, which is never written to. Choose another directory.")
    job: dict[str, Any] = {
        "model": start.fingerprint(),
        "teacher": master.fingerprint(),
        "images": train.sha256,
        "held_out_images": held_out.sha256,
        **asdict(options),
    }
    with ExitStack() as stack:
        work = stack.enter_context(claimed_directory(out, SUFFIX, WORK_FILES))
        stores = {name: Store(work / name) for name in (UPTRAIN, FINETUNE)}
        for store in stores.values():
            with output_errors(store.directory):
                store.directory.mkdir(exist_ok=True)
        begun = {name: store.begin(job, restart) for name, store in stores.items()}
        made = prepare_start(start, spec, master, work, train, job, options, device, progress)
        accelerator = stack.enter_context(accelerated(device, "float32", ()))
        if accelerator.num_processes > 1:
            raise UsageError("vision-train runs in one process; start it without a launcher")
        run = _Run(made, options, stores, begun, accelerator, progress, notice)
        ended = run.train(train, held_out)
        allocation = freeze(run.student, run.spec)
        task = Classes(train, held_out, run.transform)
        bare: Any = run.student
        scores = ended[FINETUNE].last or {}
        if options.as_published:  # what is written is not what was evaluated in training
            scores = evaluate(Prepared(accelerator, bare, None, None), task, options.batch_size)
        record = _record(model, teacher, train, held_out, options, job, ended, allocation, scores)
        _write(run, out, record, job, stores, overwrite, progress)
    last = ended[FINETUNE].last or {}
    first = ended.get(UPTRAIN)
    return VisionResult(
        out=out,
        method=options.method,
        accuracy=scores["accuracy"],
        loss=scores["loss"],
        in_training=last if options.as_published else scores,
        features=None
        if first is None or not first.first or not first.last
        else (first.first["features"], first.last["features"]),
        allocation=tuple(allocation),
        train_images=len(train),
        held_out_images=len(held_out),
        steps={name: each.step for name, each in ended.items()},
        seconds=sum(each.seconds for each in ended.values()),
        resumed=any(each.step for each in begun.values()),
    )


class _Run:
    """The two phases of one run."""

    def __init__(
        self,
        made: Made,
        options: VisionOptions,
        stores: Mapping[str, Store],
        begun: Mapping[str, Progress],
        accelerator: Any,
        progress: Reporter,
        notice: Notice,
    ) -> None:
        self.made, self.options, self.stores, self.begun = made, options, stores, begun
        self.accelerator, self.progress, self.notice = accelerator, progress, notice
        self.start, self.spec = Source.open(made.student)
        self.transform = PixelTransform(Checkpoint.open(str(made.teacher)))
        self.student: Any = load(made.student, dtype=torch.float32)
        schedule = Schedule(options.window, options.decay, options.seed)
        install(self.student, self.spec, options.method, schedule, as_published=options.as_published)

    def train(self, train: LabelledImages, held_out: LabelledImages) -> dict[str, Progress]:
        """Both phases; the student then has the last step's weights.

        The last, not the best on the held-out images: what is reported on them is then no choice made by them.
        """
        ended: dict[str, Progress] = {}
        if self.options.uptrains:
            teacher = load(self.made.teacher, dtype=torch.float32)
            few = held_out.take(range(min(FEATURE_IMAGES, len(held_out))))
            ended[UPTRAIN] = self._phase(UPTRAIN, Features(train, few, self.transform), teacher)
        ended[FINETUNE] = self._phase(FINETUNE, Classes(train, held_out, self.transform), None)
        return ended

    def _phase(self, name: str, task: ImageTask, teacher: Any) -> Progress:
        phase = self.options.phase(name, task.sizes[0])
        begun, store = self.begun[name], self.stores[name]
        if begun.step < phase.max_steps:
            begun = self._loop(name, task, teacher, phase, begun)
        weights, _ = store.load_state(begun.step)
        put_weights(self.student, weights)
        return begun

    def _loop(self, name: str, task: Any, teacher: Any, phase: UptrainOptions, begun: Progress) -> Progress:
        train_all_but(self.student, _NOT_TRAINED[name])
        optimizer = torch.optim.AdamW(
            parameter_groups(self.student, phase.weight_decay),
            lr=phase.learning_rate,
            betas=(phase.adam_beta1, phase.adam_beta2),
            eps=phase.adam_epsilon,
            fused=True,  # a small model's step is short, and its optimiser a fifth of it otherwise
        )
        prepared = prepare(self.accelerator, self.student, teacher, optimizer, ())
        pace = Pace.of(phase, task.sizes[0], phase.per_device_batch_size)
        left = (pace.max_steps - begun.step) * phase.per_device_batch_size
        with self.progress(name, left, "images") as advance:
            loop = Loop(
                prepared,
                task,
                phase,
                pace,
                self.stores[name],
                advance,
                lambda step, scores: self.notice(name, step, scores),
            )
            return loop.run(begun)


def _write(
    run: _Run,
    out: Path,
    record: Mapping[str, Any],
    job: Mapping[str, Any],
    stores: Mapping[str, Store],
    overwrite: bool,
    progress: Reporter,
) -> None:
    """The frozen student as a checkpoint, by way of transformers' own names for its tensors."""
    ready = work_directory(out) / "ready"
    with output_errors(ready):
        shutil.rmtree(ready, ignore_errors=True)
        run.accelerator.unwrap_model(run.student).to("cpu").save_pretrained(str(ready))
    final = Checkpoint.open(str(ready))
    metrics = b"".join(stores[name].metrics() for name in (UPTRAIN, FINETUNE))
    files = {
        RECORD_FILE: pretty(record),
        METRICS_FILE: metrics,
        CARD_FILE: vision_card(record).encode(),
        **shipped_code(),
    }
    processor = run.start.path.with_name("teacher") / "preprocessor_config.json"
    if processor.is_file():
        files[processor.name] = processor.read_bytes()
    with progress("write", final.nbytes, "bytes") as advance:
        write_checkpoint(
            final,
            out,
            WriteJob(
                replaced={},
                config=final.config,
                decides={"vision": dict(job)},
                extra_files=files,
                checksum_file=CHECKSUM_FILE,
            ),
            overwrite=overwrite,
            progress=advance,
        )


def _record(
    model: str,
    teacher: str | None,
    train: LabelledImages,
    held_out: LabelledImages,
    options: VisionOptions,
    job: Mapping[str, Any],
    ended: Mapping[str, Progress],
    allocation: list[Allocation],
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """The content of `gqakit-vision.json`."""
    import accelerate
    import transformers

    return {
        "gqakit_version": __version__,
        "model": {"name": Path(model).name, "fingerprint": job["model"]},
        "teacher": {"name": Path(teacher or model).name, "fingerprint": job["teacher"]},
        "images": {
            "name": train.images.name,
            "sha256": job["images"],
            "train": len(train),
            "held_out": len(held_out),
            "held_out_name": held_out.images.name,
            "held_out_sha256": job["held_out_images"],
            "classes": list(train.classes),
        },
        "options": asdict(options),
        "key_driven": options.method in KEY_DRIVEN,
        "allocation": [list(each) for each in allocation],
        "phases": {name: asdict(each) for name, each in ended.items()},
        "result": dict(scores),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }
