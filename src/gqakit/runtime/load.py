"""Loading a stock or grouped checkpoint as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.errors import CheckpointError
from gqakit.runtime.registration import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The language model of a checkpoint directory, in eval mode.

    Args:
        path: directory with `config.json` and the weights; grouped or of any family transformers reads.
        dtype: of the weights; None keeps the checkpoint's own.
        device_map: as in `from_pretrained`; None is the CPU.
        trust_remote_code: run model code found in the checkpoint. Grouped checkpoints do not need it: they
            run the installed gqakit's.

    Raises:
        CheckpointError: the directory, its `config.json` or its weights are missing, or tensors of the model
            are not in the checkpoint (transformers alone would fill them with random numbers).
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json here. Expected a directory in Hugging Face layout.")
    if not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise CheckpointError(
            f"{path}: no weights here. Expected *.safetensors (or *.bin) beside config.json."
        )

    from transformers import AutoModelForCausalLM

    register()
    # The annotation: transformers' own says nothing of output_loading_info, which makes it a pair.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype="auto" if dtype is None else dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"{path}: {len(missing)} tensors of the model are missing, first {missing[0]!r}. "
            "The checkpoint is incomplete; copy or convert it again."
        )
    return model.eval()
