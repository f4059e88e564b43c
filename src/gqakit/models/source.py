"""A model that was opened once: what the user called it, its checkpoint, and what its attention is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gqakit.checkpoint import Checkpoint
from gqakit.core.attention import AttentionWeights
from gqakit.errors import UsageError
from gqakit.models.defaults import needs_defaults, with_defaults
from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES
from gqakit.models.families.base import lookup
from gqakit.models.layers import read_layer
from gqakit.models.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """An opened model, handed from step to step so that no step opens it again.

    Attributes:
        name: as the user gave it: a directory or a name on the hub.
        checkpoint: headers, config and tensors on demand.
        spec: the attention layers of the chosen stacks.
    """

    name: str
    checkpoint: Checkpoint
    spec: ModelSpec

    @classmethod
    def open(cls, model: str | Path, stacks: Sequence[str] = ()) -> Self:
        """Open a model; reads headers only.

        Args:
            model: directory, or name on the Hugging Face hub.
            stacks: the kinds of attention layers that matter; none given are those that generation caches, or all where
                none is cached.

        Raises:
            CheckpointError, FamilyError: see `Checkpoint.open` and `describe_model`. UsageError: an unknown stack.
        """
        checkpoint = Checkpoint.open(str(model))
        return cls(str(model), checkpoint, _described(checkpoint, stacks))

    def with_stacks(self, stacks: Sequence[str]) -> Source:
        """The same model with the layers of other stacks."""
        return replace(self, spec=_described(self.checkpoint, stacks))

    def with_all_stacks(self) -> Source:
        """The same model with every stack whose layers have as many query heads as the chosen ones.

        Raises:
            FamilyError: one of those has attention that is not understood.
        """
        spec, sizes = self.spec, self.spec.family.part(self.full_config)
        stacks = spec.family.stacks
        alike = [stack.name for stack in stacks if lookup(sizes, stack.num_heads) == spec.num_heads]
        return self.with_stacks(alike)

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self.checkpoint.path

    @cached_property
    def full_config(self) -> dict[str, Any]:
        """The parsed `config.json` with what it leaves out, as transformers has it.

        Raises:
            FamilyError: transformers refuses the config.
        """
        return with_defaults(self.checkpoint.config)

    @property
    def short_name(self) -> str:
        """The last part of the name."""
        return Path(self.name).name or self.path.resolve().name

    @property
    def model_id(self) -> str:
        """The model's name for cards and plans, with its organisation where that is known.

        A name on the hub is one; a directory of the hub's cache and many configs have one written in them.
        """
        if not Path(self.name).exists():
            return self.name.partition("@")[0]
        for part in self.path.resolve().parts:
            if part.startswith("models--"):
                return part.removeprefix("models--").replace("--", "/")
        stated = str(self.checkpoint.config.get("_name_or_path") or "")
        is_id = stated.count("/") == 1 and not stated.startswith((".", "/", "~")) and " " not in stated
        return stated if is_id else self.short_name

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from every other; see `Checkpoint.fingerprint`."""
        return self.checkpoint.fingerprint()

    def fingerprint_like(self, recorded: str) -> str:
        """The fingerprint in the form of one that a file records: files of gqakit 0.1 have another."""
        return self.checkpoint.fingerprint(recorded)

    def layer(self, layer: int) -> AttentionWeights:
        """The attention weights of one layer.

        Raises:
            CheckpointError: a weight cannot be read or is not finite; names it.
        """
        return read_layer(self.spec, layer, self.checkpoint.load)

    def check_not_grouped(self) -> None:
        """Raise `UsageError` for a checkpoint that is grouped already: its groups cannot be merged again."""
        if self.spec.is_grouped:
            raise UsageError(
                f"{self.path} is already a grouped checkpoint; convert from the model it was made of"
            )


def _described(checkpoint: Checkpoint, stacks: Sequence[str]) -> ModelSpec:
    config = checkpoint.config
    if needs_defaults(config):
        config = with_defaults(config)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    attention = (info for name, info in checkpoint.tensors.items() if "attn" in name or "attention" in name)
    info = next(attention, next(iter(checkpoint.tensors.values())))
    return describe_model(FAMILIES, config, shapes, info.torch_dtype.itemsize, list(stacks) or None)
