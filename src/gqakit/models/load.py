"""Loading a stock or grouped checkpoint as a transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.errors import CheckpointError
from gqakit.models.registration import register

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from gqakit.models.families.base import Family
    from gqakit.models.spec import ModelSpec


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint directory, in eval mode: of the class that its config names.

    Args:
        path: directory with `config.json` and the weights; grouped or of any family transformers reads.
        dtype: of the weights; None keeps the checkpoint's own.
        device_map: as in `from_pretrained`; None is the CPU.
        trust_remote_code: run model code found in the checkpoint. Grouped checkpoints do not need it: they
            run the installed gqakit's.

    Raises:
        CheckpointError: the directory, its `config.json` or its weights are missing, or tensors of the model
            are not in the checkpoint (transformers alone would fill them with random numbers), or transformers
            refuses it.
    """
    from gqakit.checkpoint.jsonio import parse_object, read_bytes
    from gqakit.models.architectures import class_of, family_of

    path = Path(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json here. Expected a directory in Hugging Face layout.")
    if not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise CheckpointError(
            f"{path}: no weights here. Expected *.safetensors (or *.bin) beside config.json."
        )

    config = parse_object(read_bytes(path / "config.json"), str(path / "config.json"))
    register(str(config.get("model_type")))
    how = {"dtype": dtype or "auto", "device_map": device_map, "trust_remote_code": trust_remote_code}
    family = family_of(config)
    if family is None:
        import transformers

        model, missing = _loaded(path, transformers.AutoModelForCausalLM, how)
    else:
        kind = class_of(config)
        model, missing = _loaded(path, kind, how)
        if missing and is_headless(family, model, missing):
            bare = {**config, "architectures": [family.classes["AutoModel"]]}
            model, missing = _loaded(path, class_of(bare), how)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors of the model are missing, first {missing[0]!r}. "
            "The checkpoint is incomplete; copy or convert it again."
        )
    return model.eval()


def _loaded(path: Path, kind: Any, how: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """The model by one of transformers' classes, and what the checkpoint lacks."""
    with loading(path):
        model, info = kind.from_pretrained(
            str(path), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
    check_shapes(path, info["mismatched_keys"])
    model.config.return_dict = True  # outputs are read by their names
    return model, really_missing(info["missing_keys"])


def check_shapes(path: Path, wrong: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> None:
    """Raise `CheckpointError` for tensors that do not fit the config: name, shape in the checkpoint, shape in the model."""
    found = sorted(wrong)
    if found:
        name, seen, expected = found[0]
        raise CheckpointError(
            f"{path}: tensors are not of the shape that config.json asks for ({len(found)}), first {name}: "
            f"{list(seen)}, expected {list(expected)}. Set the config's sizes to those of the weights, or fetch both again."
        )


def really_missing(missing: Iterable[str]) -> list[str]:
    """What is missing of a model, without an encoder's pooler: it is often left out, and nothing here has a use for it."""
    return sorted(name for name in missing if "pooler." not in name)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint's files into one line that says what to do."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        StrictDataclassError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,  # of torch, where a size and an index do not fit
        ImportError,
        RuntimeError,
    ) as error:
        import transformers

        index = path / "model.safetensors.index.json"
        if isinstance(error, KeyError) and error.args == ("metadata",) and index.is_file():
            raise CheckpointError(
                f'{index}: has no "metadata", which transformers {transformers.__version__} asks for; add '
                '"metadata": {} to it'
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}: transformers {transformers.__version__} does not load it: {type(error).__name__}: {said[:400]}"
        ) from error


def is_headless(family: Family, model: PreTrainedModel, missing: list[str]) -> bool:
    """Whether an encoder is all there but the head of the class that its config names, as in many sentence embedders."""
    if any(stack.cached for stack in family.stacks) or model.base_model is model:
        return False
    return not any(name.startswith(f"{model.base_model_prefix}.") for name in missing)


def use_attention_interface(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Make the attention modules of a stock model ask transformers' attention interface, where theirs do not."""
    if spec.family.watched:
        return
    from gqakit.models.remote_code.adapters import adapt

    for layer in range(spec.num_layers):
        adapt(spec.attention_module(model, layer), spec.family.model_type, model.config)
