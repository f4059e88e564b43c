"""Images as a model takes them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError

PROCESSOR_FILE = "preprocessor_config.json"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelTransform:
    """Pixels `[n, h, w, 3]` of bytes to the model's input `[n, 3, height, width]`.

    By the checkpoint's image processor; where it has none, resized to the config's size and normalised by ImageNet's
    mean and deviation.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.path = source.path
        size = source.config.get("image_size")
        self.size: int | None = size if isinstance(size, int) or size is None else size[0]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """The input for some images.

        Raises:
            CheckpointError: the image processor does not load.
        """
        if self._processor is not None:
            return self._processor(list(pixels), return_tensors="pt")["pixel_values"]
        size = self.size or pixels.shape[1]
        values = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
        if values.shape[-2:] != (size, size):
            values = interpolate(
                values, size=(size, size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
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
