"""Images with a class each, read from files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gqakit.data.samples import Images, image_files, read_images
from gqakit.errors import DataError

_LABELS, _NAMES = ("labels", "label", "targets", "y"), ("classes", "names", "class_names")


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: see there. labels: `[n]`, numbers of classes. classes: their names.
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Hash of pixels, labels and names."""
        said = f"{self.images.sha256}\n{self.classes}\n".encode()
        return hashlib.sha256(said + self.labels.astype("<i8").tobytes()).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Those images."""
        chosen = np.asarray(indices)
        return LabelledImages(
            Images(self.images.name, self.images.pixels[chosen]), self.labels[chosen], self.classes
        )


def read_labelled_images(source: str | Path) -> LabelledImages:
    """An `.npz` with images and labels, or a folder with a folder of images for each class.

    An `.npz` has its images as `read_images` finds them, integers `[n]` called `labels`, `label`, `targets` or `y`, and,
    if it likes, names called `classes`.

    Raises:
        DataError: nothing is there, it holds no images, or no class for each of them.
        MissingDependencyError: a folder without Pillow.
    """
    path = Path(source)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _of_archive(path)
    raise DataError(
        f"{path} is neither an .npz with images and labels nor a folder with a folder of images for each class"
    )


def _of_folder(path: Path) -> LabelledImages:
    files = image_files(path)
    loose = [file for file in files if file.parent == path]
    if not files or loose:
        seen = (
            f"{len(loose)} images lie in it directly, first {loose[0].name}"
            if loose
            else "it holds no images"
        )
        raise DataError(f"{path}: expected a folder of images for each class; {seen}")
    names = [file.relative_to(path).parts[0] for file in files]
    classes = tuple(sorted(set(names)))
    return LabelledImages(read_images(path), np.array([classes.index(name) for name in names]), classes)


def _of_archive(path: Path) -> LabelledImages:
    images = read_images(path)
    with np.load(path, allow_pickle=False) as archive:
        found = next((archive[name] for name in _LABELS if name in archive.files), None)
        names = next((archive[name] for name in _NAMES if name in archive.files), None)
        there = ", ".join(archive.files)
    if found is None:
        raise DataError(
            f"{path} holds no labels: expected an array called {' or '.join(_LABELS)}, seen {there}"
        )
    if found.shape != (len(images.pixels),) or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"{path}: expected integer labels for {len(images.pixels)} images, seen {found.dtype} {list(found.shape)}"
        )
    labels = found.astype(np.int64)
    if not len(labels):
        raise DataError(f"{path} holds no images")
    count = int(labels.max()) + 1 if names is None else len(names)
    if labels.min() < 0 or labels.max() >= count:
        raise DataError(f"{path}: labels go from {labels.min()} to {labels.max()}, expected 0 to {count - 1}")
    classes = map(str, range(count)) if names is None else map(str, names)
    return LabelledImages(images, labels, tuple(classes))


def split_images(images: LabelledImages, held_out: int) -> tuple[LabelledImages, LabelledImages]:
    """Images to train on and `held_out` images that are not, by one shuffle that is always the same.

    Raises:
        DataError: when nothing would be left on one side.
    """
    if not 0 < held_out < len(images):
        raise DataError(
            f"images {images.images.name}: {len(images)}, of which {held_out} are to be held out; expected between 1 and "
            f"{len(images) - 1}"
        )
    order = np.random.default_rng(0).permutation(len(images))
    return images.take(order[held_out:]), images.take(order[:held_out])
