"""A language model that a package brings in GGUF."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from gqakit.errors import MissingDependencyError


def unpack_gguf(files: dict[str, bytes], target: Path) -> None:
    """Save a GGUF model in float32 as a Hugging Face directory.

    Raises:
        MissingDependencyError: without the `demo` extra.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:  # transformers reads GGUF through both
        raise MissingDependencyError(
            f"reading a GGUF model needs {' and '.join(missing)}: pip install 'gqakit[demo]'"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.mkdir()
    ((name, content),) = files.items()
    gguf = target / name
    gguf.write_bytes(content)
    where = str(target)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        settings.pop(key, None)
    model = type(quantised)(type(quantised.config)(**settings))  # a config without the marks of quantisation
    model.load_state_dict(quantised.state_dict())
    gguf.unlink()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
