"""What a model is run on: text, images or speech, read from files and named for the record."""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gqakit.errors import DataError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from gqakit.data.text import Text

Batch = Mapping[str, Any]
"""Keyword arguments of one forward pass."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
RATE = 16_000


def positions_of(batch: Batch) -> int:
    """Positions that a batch has, for progress: tokens, else for each 20 ms of speech 1, for each image 1."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    ids = [value for name, value in tensors.items() if name.endswith("input_ids")]
    if ids:
        return ids[0].numel()
    if "input_values" in tensors:  # [B, samples]
        return tensors["input_values"].numel() * 50 // RATE
    if "input_features" in tensors:  # [B, mels, frames of 10 ms]
        return tensors["input_features"][:, 0].numel() // 2
    return next(iter(tensors.values())).shape[0]


def in_precision(batch: Batch, dtype: torch.dtype) -> Batch:
    """A batch with its pixels and spectrograms in the precision that a model runs in."""
    return {
        n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in batch.items()
    }


@dataclass(frozen=True)
class Images:
    """Some images, `[n, height, width, 3]` of bytes, and what to call them.

    Attributes:
        size: height and width at which a model is to see them; None for its own.
    """

    name: str
    pixels: np.ndarray
    size: int | None = None

    @property
    def sha256(self) -> str:
        """Hash of the pixels and the size."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        if self.size is not None:
            digest.update(f"@{self.size}".encode())
        return digest.hexdigest()

    def part(self, which: slice) -> Images:
        """Some of them."""
        return replace(self, pixels=self.pixels[which])


@dataclass(frozen=True)
class Pairs:
    """Images and a text, for a model that takes both; what is read to an image need not be about it."""

    images: Images
    text: Text

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.images.name} + {self.text.name}"

    @property
    def sha256(self) -> str:
        """Hash of both."""
        return hashlib.sha256(f"{self.images.sha256} {self.text.sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class Speech:
    """Some recordings at 16 kHz, one channel, and what to call them."""

    name: str
    clips: tuple[np.ndarray, ...]

    @property
    def sha256(self) -> str:
        """Hash of the samples."""
        digest = hashlib.sha256()
        for clip in self.clips:
            digest.update(np.ascontiguousarray(clip).tobytes())
        return digest.hexdigest()


def read_images(source: str | Path, limit: int | None = None, size: int | None = None) -> Images:
    """Images of a folder, of an `.npz` or `.npy` with an array `[n, h, w, 3]` or `[n, h, w]`, or of a dataset by name.

    Args:
        source: the place.
        limit: the most to take; of a folder the first by name.
        size: see `Images`.

    Raises:
        DataError: nothing is there, or it holds no images. UsageError: no such size.
        MissingDependencyError: a folder without Pillow, a dataset without `datasets`.
    """
    if size is not None and size < 1:
        raise UsageError(f"`image_size` is {size}, expected at least 1")
    path = Path(source)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return Images(path.name, _array_of(path)[:limit], size)
    if path.is_dir():
        files = image_files(path)[:limit]
        if files:
            return Images(path.name, _stacked([_opened(file) for file in files]), size)
        if not any(path.glob("*.json")) and not any(path.glob("*.arrow")):
            raise DataError(f"{path} holds no images; known endings: {', '.join(IMAGE_SUFFIXES)}")
    elif path.exists():
        raise DataError(f"{path} is neither a folder of images nor an .npz or .npy")
    return Images(str(source), _stacked(_dataset_images(str(source), limit)), size)


def image_files(folder: Path) -> list[Path]:
    """Every image below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _array_of(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    arrays = [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    for array in arrays:
        if array.dtype == np.uint8 and array.ndim == 3:
            return np.repeat(array[..., None], 3, axis=-1)
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3:
            return array
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] == 3:
            return np.moveaxis(array, 1, -1)
    seen = ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays)
    raise DataError(f"{path} holds no images: expected uint8 [n, height, width, 3], seen {seen}")


def _opened(file: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("image files need Pillow: pip install 'gqakit[vision]'") from error
    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"cannot read image {file}: {error}") from error


def _stacked(images: Sequence[Any]) -> np.ndarray:
    """All images at the first one's size."""
    size = images[0].size
    return np.stack([np.asarray(image if image.size == size else image.resize(size)) for image in images])


def _dataset_images(name: str, limit: int | None) -> list[Any]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingDependencyError(
            "a dataset needs the 'data' extra: pip install 'gqakit[data]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"images {name!r} are no folder, no array and no dataset: {str(error).splitlines()[0]}"
        ) from error
    found: list[Any] = []
    for row in rows:
        assert isinstance(row, dict)
        image = next((value for value in row.values() if hasattr(value, "convert")), None)
        if image is None:
            raise DataError(f"dataset {name!r} has no image column; its columns are {sorted(row)}")
        found.append(image.convert("RGB"))
        if limit is not None and len(found) >= limit:
            break
    return found


def read_speech(sources: Sequence[str | Path], limit: int | None = None) -> Speech:
    """Recordings of files or folders, resampled to 16 kHz, channels averaged.

    Raises:
        DataError: a file is missing or not audio. MissingDependencyError: other than `.wav` without `soundfile`.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        found = [source]
        if source.is_dir():
            found = sorted(p for p in source.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        files += found
    if not files:
        raise DataError(
            f"no recordings in {', '.join(map(str, sources))}; known endings: {', '.join(AUDIO_SUFFIXES)}"
        )
    files = files[:limit]
    names = " + ".join(dict.fromkeys(Path(source).name for source in sources))
    return Speech(names, tuple(_clip(file) for file in files))


def _clip(file: Path) -> np.ndarray:
    from scipy.signal import resample_poly

    samples, rate = _wav(file) if file.suffix.lower() == ".wav" else _other_audio(file)
    if samples.size == 0:
        raise DataError(f"recording {file} is empty")
    if rate != RATE:
        samples = resample_poly(samples, RATE, rate)
    return samples.astype(np.float32)


def _wav(file: Path) -> tuple[np.ndarray, int]:
    try:
        with wave.open(str(file), "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            raw = opened.readframes(opened.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"cannot read recording {file}: {error}") from error
    if width not in (2, 4):
        raise DataError(f"recording {file} has {8 * width}-bit samples; 16 and 32 are read")
    whole = np.frombuffer(raw, dtype="<i2" if width == 2 else "<i4").astype(np.float64)
    return whole.reshape(-1, channels).mean(1) / 2 ** (8 * width - 1), rate


def _other_audio(file: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"{file.suffix} files need soundfile: pip install 'gqakit[audio]'"
        ) from error
    try:
        samples, rate = soundfile.read(str(file), always_2d=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot read recording {file}: {error}") from error
    return samples.mean(1), rate


def text_batches(windows: Tensor, *, cached: bool) -> list[dict[str, Any]]:
    """One batch for each window of token ids, `[windows, window]`.

    `cached` models get `use_cache=False`; encoders have no such option.
    """
    more = {"use_cache": False} if cached else {}
    return [{"input_ids": window[None], **more} for window in windows]


def as_batches(inputs: Tensor | Iterable[Batch], *, cached: bool = True) -> list[Batch]:
    """Windows of token ids, or batches, as batches."""
    return list(text_batches(inputs, cached=cached) if isinstance(inputs, Tensor) else inputs)


def translation_batches(windows: Tensor, start: int, end: int | None = None) -> list[dict[str, Any]]:
    """Of each window the first half as what an encoder reads, and the second as what the decoder continues with.

    Args:
        windows: `[windows, tokens]`.
        start: the token that a decoder begins with.
        end: the token whose state is classified, in a model that does that. It reads the same text on both sides then, with
            this token last.
    """
    half = windows.shape[1] // 2
    first = torch.full((1, 1), start, dtype=windows.dtype)
    if end is not None:
        ended = torch.cat([windows[:, :-1], torch.full_like(windows[:, :1], end)], dim=1)
        return [
            {
                "input_ids": window[None],
                "decoder_input_ids": torch.cat([first, window[None, :-1]], dim=1),
                "use_cache": False,
            }
            for window in ended
        ]
    return [
        {
            "input_ids": window[None, :half],
            "decoder_input_ids": torch.cat([first, window[None, half:-1]], dim=1),
            "use_cache": False,
        }
        for window in windows
    ]
