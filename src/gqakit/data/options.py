"""Options that name data: text, a dataset, images or recordings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.options import Options, option

if TYPE_CHECKING:
    from gqakit.data.batches import Content

DATA = "Data"
WINDOW = 512


@dataclass(frozen=True)
class TextOptions(Options):
    """A text: files, a dataset, or one that comes with gqakit."""

    text: Any = option(
        None,
        "A UTF-8 text file; may be repeated: windows are taken from each in turn. Default: a small text that comes "
        "with gqakit.",
        panel=DATA,
        many=True,
    )
    dataset: str | None = option(
        None, "A dataset (hub name or local directory) in place of a text file.", panel=DATA
    )
    dataset_split: str = option("train", "Which split of the dataset.", panel=DATA)
    dataset_column: str = option("text", "Which column of the dataset holds text.", panel=DATA)

    def _named(self) -> dict[str, Any]:
        return {"text": self.text, "dataset": self.dataset}

    @property
    def names_data(self) -> bool:
        """Whether any data is named, so that the default does not count."""
        return any(value is not None for value in self._named().values())

    def problems(self) -> Iterator[str]:
        """Several kinds of data at once."""
        yield from super().problems()
        given = [f"`{name}`" for name, value in self._named().items() if value is not None]
        if len(given) > 1 and given not in (["`text`", "`images`"], ["`dataset`", "`images`"]):
            yield f"give one of {' and '.join(given)}, not {len(given)}"

    def read(self, default: str = "calibration") -> Content:
        """What is named, read.

        Args:
            default: the text of gqakit's own that stands in: "calibration" or "evaluation".

        Raises:
            DataError, MissingDependencyError: about what is read.
        """
        from gqakit.data.text import read_dataset

        if self.dataset is not None:
            return read_dataset(self.dataset, self.dataset_split, self.dataset_column)
        return read_named(self.text, default)


@dataclass(frozen=True)
class DataOptions(TextOptions):
    """A text, or images or recordings for the models that take those."""

    images: Any = option(
        None, "For image models: a folder of images, an .npz of uint8 [n, height, width, 3], or a dataset name; "
        "with a text for models that take both.",
        panel=DATA,
    )  # fmt: skip
    audio: Any = option(
        None, "For speech models: a recording or a folder of them; may be repeated.", panel=DATA, many=True
    )
    samples: int | None = option(None, "Most images or recordings to take.", panel=DATA, at_least=1)
    image_size: int | None = option(
        None, "Height and width of the images for the model; its own by default.", panel=DATA, at_least=1
    )

    def _named(self) -> dict[str, Any]:
        return {**super()._named(), "images": self.images, "audio": self.audio}

    def read(self, default: str = "calibration") -> Content:
        """What is named, read; see `TextOptions.read`."""
        from gqakit.data.samples import Images, Pairs, Speech, read_images, read_speech
        from gqakit.data.text import Text

        if isinstance(self.images, str | Path):
            images = read_images(self.images, self.samples, self.image_size)
            text = super().read(default) if self.text is not None or self.dataset is not None else None
            return Pairs(images, text) if isinstance(text, Text) else images
        if isinstance(self.images, Images) or isinstance(self.audio, Speech):
            return self.images or self.audio
        if self.audio is not None:
            return read_speech(
                [self.audio] if isinstance(self.audio, str | Path) else self.audio, self.samples
            )
        return super().read(default)


def read_named(text: Any, default: str) -> Content:
    """A text given as one file, several, or read already; the text of gqakit's own by that name where none is given.

    Raises:
        DataError: see `read_text`.
    """
    from gqakit.data.samples import Images, Pairs, Speech
    from gqakit.data.text import Text, read_text

    if isinstance(text, Text | Images | Speech | Pairs):
        return text
    if text is None:
        return read_text([default])
    return read_text([text] if isinstance(text, str | Path) else text)
