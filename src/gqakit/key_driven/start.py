"""What `vision-train` begins with: the checks, the images, the classifier and its conversion."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, check_output, write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.jsonio import canonical
from gqakit.data.labelled import LabelledImages, read_labelled_images, split_images
from gqakit.data.samples import Images
from gqakit.errors import BudgetError, CheckpointError, DataError, OutputError, UsageError
from gqakit.key_driven.classifier import CLASSIFIER, save_classifier
from gqakit.key_driven.install import check_groups
from gqakit.key_driven.options import VisionOptions
from gqakit.models.remote_code.heads import read_layers
from gqakit.models.running import check_device
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.make import plan
from gqakit.progress import Reporter

PREPARED_FILE = "prepared.json"
SUFFIX = ".vision"
"""A run is kept in `OUT.vision` while it is not finished."""
WORK_FILES = (PREPARED_FILE, *(f"{name}*" for name in ("student", "teacher", "ready", "uptrain", "finetune")))
"""Patterns of what a run writes there."""
CALIBRATION_IMAGES = 256
ASIDE = ("images", "test_images", "teacher", "device", "restart", "overwrite")
"""Options that name things whose content is recorded, or that do not change the result."""


@dataclass(frozen=True)
class VisionJob:
    """One run, checked: models are open and images read, nothing is loaded.

    Attributes:
        source: what is trained, a conversion or what is converted first. teacher: the checkpoint whose features count.
        train, held_out: images with classes. device: "cpu" or "cuda".
    """

    source: Source
    teacher: Checkpoint
    out: Path
    options: VisionOptions
    train: LabelledImages
    held_out: LabelledImages
    device: str

    @classmethod
    def check(cls, model: str | Path, out: Path, options: VisionOptions) -> VisionJob:
        """Open the models and read the images; see `vision_train` for what is raised."""
        source = Source.open(model)
        check_start(source, options)
        check_output(source.checkpoint, out, options.overwrite or (out / MANIFEST_NAME).exists())
        train, held_out = read_images_for(options)
        teacher = Checkpoint.open(options.teacher) if options.teacher else source.checkpoint
        if out.exists() and out.resolve() == teacher.path.resolve():
            raise OutputError(f"{out}: is the teacher, which is never written to. Choose another directory.")
        return cls(source, teacher, out, options, train, held_out, check_device(options.device))

    @property
    def work(self) -> Path:
        """Where the run is kept while it is not finished."""
        return self.out.with_name(self.out.name + SUFFIX)

    @property
    def kv_heads(self) -> int:
        """KV heads per layer that a conversion gets."""
        return self.options.kv_heads or self.source.spec.num_heads // 2

    @property
    def recorded(self) -> dict[str, Any]:
        """The options that decide the result."""
        return {name: value for name, value in vars(self.options).items() if name not in ASIDE}

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the result: a run with another one is not continued."""
        return {
            "model": self.source.fingerprint,
            "teacher": self.teacher.fingerprint(),
            "images": self.train.sha256,
            "held_out_images": self.held_out.sha256,
            **self.recorded,
        }


def check_start(source: Source, options: VisionOptions) -> None:
    """Refuse what cannot be trained like this.

    Raises:
        UsageError: naming the option. BudgetError: the number of KV heads.
    """
    spec, config, method = source.spec, source.full_config, options.method
    if CLASSIFIER not in spec.family.classes:
        raise UsageError(f"vision-train is for ViT and DINOv2; {source.path} is a {spec.model_type}")
    if not all(isinstance(config.get(name), int) for name in ("image_size", "patch_size")):
        raise UsageError(f"{source.path}: vision-train takes square images and patches")
    if options.image_size % config["patch_size"]:
        raise UsageError(
            f"`image_size` {options.image_size} is no multiple of the model's patches of {config['patch_size']} pixels"
        )
    if spec.is_grouped:
        if options.kv_heads or method == "fold":
            asked = "`kv_heads`" if options.kv_heads else "`method=fold`"
            raise UsageError(
                f"{asked} is for a model that is converted first; {source.path} is a conversion already"
            )
        if options.uptrains and options.teacher is None:
            raise UsageError(
                "uptraining a conversion needs the model it was made of: give it as `teacher`, or `uptrain_epochs=0`"
            )
        try:
            layers = read_layers(config["gqakit"], spec.num_layers, spec.num_heads)
        except ValueError as error:
            raise CheckpointError(f"{source.path}: {error}") from error
        check_groups(method, layers)
        return
    if options.teacher is not None:
        raise UsageError(
            "`teacher` is for a conversion; of a model that is converted here it is the model itself"
        )
    count = options.kv_heads or spec.num_heads // 2
    if not 0 < count < spec.num_heads:
        raise BudgetError(f"`kv_heads` {count} of {spec.num_heads}: expected 1 to {spec.num_heads - 1}")


def read_images_for(options: VisionOptions) -> tuple[LabelledImages, LabelledImages]:
    """What to train on and what to evaluate on.

    Raises:
        DataError: too few of either, fewer than two classes, or other classes in one than in the other.
    """
    found = _read(options.images)
    name = found.images.name
    if len(found.classes) < 2:
        raise DataError(f"images {name}: {len(found.classes)} class, expected two or more")
    if options.test_images is None:
        train, held_out = split_images(found, options.held_out or max(1, len(found) // 5))
    else:
        train, held_out = found, _read(options.test_images)
        if held_out.classes != found.classes:
            raise DataError(
                f"images {held_out.images.name} have the classes {list(held_out.classes)[:5]}…, {name} has "
                f"{list(found.classes)[:5]}…"
            )
        if 0 < options.held_out < len(held_out):
            held_out = split_images(held_out, options.held_out)[1]
    if 0 < options.samples < len(train):
        train = split_images(train, options.samples)[1]
    return train, held_out


def _read(images: Any) -> LabelledImages:
    return images if isinstance(images, LabelledImages) else read_labelled_images(images)


@dataclass(frozen=True)
class Made:
    """What training begins with: a grouped classifier, and the teacher at the same resolution."""

    student: Path
    teacher: Path


def prepare_start(job: VisionJob, progress: Reporter) -> Made:
    """The classifier at the resolution asked for, and its conversion; once per run."""
    work, options, classes = job.work, job.options, job.train.classes
    made = Made(work / "student", work / "teacher")
    asked, prepared = canonical(job.asked), work / PREPARED_FILE
    if prepared.is_file() and prepared.read_bytes() == asked:
        return made
    with output_errors(work):
        prepared.unlink(missing_ok=True)
        for path in (made.student, made.teacher):
            shutil.rmtree(path, ignore_errors=True)
    save_classifier(job.teacher, made.teacher, classes, options.image_size, options.seed)
    if job.source.spec.is_grouped:
        save_classifier(job.source.checkpoint, made.student, classes, options.image_size, options.seed)
    else:
        _convert(made, job, progress)
    write_bytes(prepared, asked)
    return made


def _convert(made: Made, job: VisionJob, progress: Reporter) -> None:
    """Convert the classifier: consecutive groups and means, or (fold) what `convert` does with some of the images."""
    heads, teacher = job.kv_heads, made.teacher
    if job.options.method == "fold":
        pixels = job.train.images.pixels[:CALIBRATION_IMAGES]
        convert(
            teacher, made.student, kv_heads=heads, allocation="uniform", seed=job.options.seed,
            images=Images(job.train.images.name, pixels), evaluate=False, device=job.device,
            progress=progress, overwrite=True,
        )  # fmt: skip
        return
    plain = plan(
        teacher, kv_heads=heads, method="neighbour", merge="mean", allocation="uniform", format="grouped",
        progress=False,
    )  # fmt: skip
    convert(teacher, made.student, plan=plain, evaluate=False, overwrite=True, progress=False)
