"""Images as a model takes them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError, UsageError

PROCESSOR_FILE = "preprocessor_config.json"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelTransform:
    """Pixels `[n, h, w, 3]` of bytes to the model's input `[n, 3, height, width]`.

    By the checkpoint's image processor; where it has none, resized to the config's size and normalised by ImageNet's
    mean and deviation.

    Args:
        source: the model's checkpoint.
        size: height and width to use instead of the checkpoint's.

    Raises:
        UsageError: the size is no multiple of the model's patches.
    """

    def __init__(self, source: Checkpoint, size: int | None = None) -> None:
        self.path = source.path
        config = {**source.config, **(source.config.get("vision_config") or {})}
        own = config.get("image_size")
        self.own: int | None = own if isinstance(own, int) or own is None else own[0]
        self.asked = size
        patch = config.get("patch_size")
        if size is not None and isinstance(patch, int) and size % patch:
            raise UsageError(f"`image_size={size}` is no multiple of the model's patches of {patch} pixels")

    @property
    def interpolates(self) -> bool:
        """Whether the model's position embeddings are for another size."""
        return self.asked not in (None, self.own)

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """The input for some images.

        Raises:
            CheckpointError: the image processor does not load.
        """
        if self._processor is not None:
            if self.asked is None:
                return self._processor(list(pixels), return_tensors="pt")["pixel_values"]
            resized = _resized(torch.from_numpy(pixels).movedim(-1, 1).float(), self.asked, 255)
            kept = {"do_resize": False, "do_center_crop": False}
            return self._processor(list(resized.round().byte()), return_tensors="pt", **kept)["pixel_values"]
        values = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
        values = _resized(values, self.asked or self.own or pixels.shape[1], 1)
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (_MEAN, _STD))
        return (values - mean) / std

    @cached_property
    def _processor(self) -> Any:
        if not (self.path / PROCESSOR_FILE).is_file():
            return None
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(str(self.path), local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(
                f"{self.path}: its image processor does not load: {str(error).splitlines()[0]}"
            ) from error


def _resized(values: Tensor, size: int, most: float) -> Tensor:
    """`[n, 3, h, w]` to `[n, 3, size, size]`, values in 0..most."""
    if values.shape[-2:] == (size, size):
        return values
    made = interpolate(values, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return made.clamp(0, most)
