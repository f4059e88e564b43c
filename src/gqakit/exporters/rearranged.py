"""What `uniform` and `nemotron-nas` exports are: a checkpoint with its heads in another arrangement and another config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.checkpoint import WriteJob, WriteResult, write_checkpoint
from gqakit.conversion.files import CARD_FILE
from gqakit.exporters.model_card import export_card
from gqakit.exporters.source import ExportSource
from gqakit.models.head_layout import Arrangement
from gqakit.progress import Advance


@dataclass(frozen=True)
class Rearranged:
    """What is written.

    Attributes:
        target: uniform or nemotron-nas. how: it was made possible, pad or equalise; "" where there is one way.
        arrangements: the heads of each layer. config: the new one. notes: what to know.
    """

    target: str
    how: str
    arrangements: list[Arrangement]
    config: dict[str, Any]
    notes: tuple[str, ...]


def write_rearranged(
    source: ExportSource, model: Rearranged, out: Path, *, overwrite: bool, advance: Advance
) -> WriteResult:
    """Write the checkpoint, tensor by tensor; interrupted, the same call goes on.

    Raises:
        OutputError, CheckpointError: see `gqakit.checkpoint.write_checkpoint`.
    """
    decides = {"export": model.target, "how": model.how}
    return write_checkpoint(
        source.checkpoint,
        out,
        WriteJob(
            replaced=source.rearranged(model.arrangements),
            config=model.config,
            decides={name: value for name, value in decides.items() if value},
            extra_files={CARD_FILE: export_card(source, model.how or model.target, model.target).encode()},
            skip_files=lambda name: name.endswith("_gqakit.py"),
        ),
        overwrite=overwrite,
        progress=advance,
    )
