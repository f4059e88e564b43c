"""What `vision-train` begins with: the checks, the images, the classifier and its conversion."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.checkpoint import Checkpoint, write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.jsonio import canonical
from gqakit.data.labelled import LabelledImages, read_labelled_images, split_images
from gqakit.data.samples import Images
from gqakit.errors import BudgetError, CheckpointError, DataError, UsageError
from gqakit.key_driven.classifier import CLASSIFIER, save_classifier
from gqakit.key_driven.install import check_groups
from gqakit.key_driven.options import VisionOptions
from gqakit.models.remote_code.heads import read_layers
from gqakit.models.spec import ModelSpec
from gqakit.pipeline import convert
from gqakit.planning.make import BudgetOptions, PlanOptions, plan
from gqakit.progress import Reporter

PREPARED_FILE = "prepared.json"
CALIBRATION_IMAGES = 256


def check_start(start: Checkpoint, spec: ModelSpec, teacher: str | None, options: VisionOptions) -> None:
    """Refuse what cannot be trained like this.

    Raises:
        UsageError: naming the option. BudgetError: the number of KV heads.
    """
    family, method = spec.family, options.method
    if CLASSIFIER not in family.classes:
        raise UsageError(f"vision-train is for ViT and DINOv2; {start.path} is a {spec.model_type}")
    if not isinstance(start.config.get("image_size"), int) or not isinstance(
        start.config.get("patch_size"), int
    ):
        raise UsageError(f"{start.path}: vision-train takes square images and patches")
    if options.image_size % start.config["patch_size"]:
        raise UsageError(
            f"--image-size {options.image_size} is no multiple of the model's patches of {start.config['patch_size']} pixels"
        )
    if spec.is_grouped:
        if options.kv_heads or method == "fold":
            asked = "--kv-heads" if options.kv_heads else "--method fold"
            raise UsageError(
                f"{asked} is for a model that is converted first; {start.path} is a conversion already"
            )
        if options.uptrains and teacher is None:
            raise UsageError(
                "uptraining a conversion needs the model it was made of: give it as --teacher, or --uptrain-epochs 0"
            )
        try:
            layers = read_layers(start.config["gqakit"], spec.num_layers, spec.num_heads)
        except ValueError as error:
            raise CheckpointError(f"{start.path}: {error}") from error
        check_groups(method, layers)
        return
    if teacher is not None:
        raise UsageError(
            "--teacher is for a conversion; of a model that is converted here it is the model itself"
        )
    count = kv_heads_of(spec, options)
    if not 0 < count < spec.num_heads:
        raise BudgetError(f"--kv-heads {count} of {spec.num_heads}: expected 1 to {spec.num_heads - 1}")


def kv_heads_of(spec: ModelSpec, options: VisionOptions) -> int:
    """KV heads a layer."""
    return options.kv_heads or spec.num_heads // 2


def read_images_for(
    images: LabelledImages | str | Path,
    test_images: LabelledImages | str | Path | None,
    options: VisionOptions,
) -> tuple[LabelledImages, LabelledImages]:
    """What to train on and what to evaluate on.

    Raises:
        DataError: too few of either, fewer than two classes, or other classes in one than in the other.
    """
    found = images if isinstance(images, LabelledImages) else read_labelled_images(images)
    name = found.images.name
    if len(found.classes) < 2:
        raise DataError(f"images {name}: {len(found.classes)} class, expected two or more")
    if test_images is None:
        train, held_out = split_images(found, options.held_out or max(1, len(found) // 5))
    else:
        train = found
        held_out = (
            test_images if isinstance(test_images, LabelledImages) else read_labelled_images(test_images)
        )
        if held_out.classes != found.classes:
            raise DataError(
                f"images {held_out.images.name} have the classes {list(held_out.classes)[:5]}…, {name} has "
                f"{list(found.classes)[:5]}…"
            )
        if options.held_out:
            held_out = (
                split_images(held_out, options.held_out)[1] if options.held_out < len(held_out) else held_out
            )
    if 0 < options.samples < len(train):
        train = split_images(train, options.samples)[1]
    return train, held_out


@dataclass(frozen=True)
class Made:
    """What training begins with: a grouped classifier, and the teacher at the same resolution."""

    student: Path
    teacher: Path


def prepare_start(
    start: Checkpoint,
    spec: ModelSpec,
    master: Checkpoint,
    work: Path,
    train: LabelledImages,
    job: Mapping[str, Any],
    options: VisionOptions,
    device: str,
    progress: Reporter,
) -> Made:
    """The classifier at the resolution asked for, and its conversion; once a run."""
    made = Made(work / "student", work / "teacher")
    asked = canonical(dict(job))
    if (work / PREPARED_FILE).is_file() and (work / PREPARED_FILE).read_bytes() == asked:
        return made
    with output_errors(work):
        (work / PREPARED_FILE).unlink(missing_ok=True)
        for path in (made.student, made.teacher):
            shutil.rmtree(path, ignore_errors=True)
    save_classifier(master, made.teacher, train.classes, options.image_size, options.seed)
    if spec.is_grouped:
        save_classifier(start, made.student, train.classes, options.image_size, options.seed)
    else:
        _convert(made, kv_heads_of(spec, options), train, options, device, progress)
    write_bytes(work / PREPARED_FILE, asked)
    return made


def _convert(
    made: Made, kv_heads: int, train: LabelledImages, options: VisionOptions, device: str, progress: Reporter
) -> None:
    """Convert the classifier: consecutive groups and means, or (fold) what `convert` does with some of the images."""
    budget, teacher = BudgetOptions(kv_heads=kv_heads), str(made.teacher)
    if options.method == "fold":
        some = Images(train.images.name, train.images.pixels[:CALIBRATION_IMAGES])
        convert(
            teacher,
            made.student,
            budget=budget,
            options=PlanOptions(allocation="uniform", seed=options.seed),
            text=some,
            measure=False,
            device=device,
            progress=progress,
            overwrite=True,
        )
        return
    plain = PlanOptions(method="neighbour", merge="mean", allocation="uniform", format="grouped")
    convert(teacher, made.student, plan=plan(teacher, budget, plain), measure=False, overwrite=True)
