"""Writing a GGUF file, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gqakit.checkpoint import atomic_file
from gqakit.checkpoint.atomic import output_errors
from gqakit.errors import CheckpointError
from gqakit.exporters.gguf_model import GgufModel
from gqakit.exporters.gguf_types import PLAIN, encode, load_gguf, nbytes_of, type_of
from gqakit.exporters.gguf_vocab import Vocab
from gqakit.progress import Advance


def gguf_bytes(model: GgufModel, wanted: str) -> int:
    """Bytes of all tensors of the file."""
    gguf = load_gguf()
    return sum(nbytes_of(gguf, t.shape, type_of(gguf, t.shape, wanted)) for t in model.tensors)


def write_gguf(
    path: Path, name: str, model: GgufModel, vocab: Vocab, wanted: str, advance: Advance = lambda n: None
) -> None:
    """Write the file, atomically; memory for one layer's attention and one tensor is enough.

    Args:
        wanted: type of the matrices: f32, f16, bf16 or a quantisation that the gguf package makes.
        advance: called with the bytes just written.

    Raises:
        OutputError: the disk refuses. CheckpointError: a weight cannot be read or does not fit the type.
    """
    gguf = load_gguf()
    writer = gguf.GGUFWriter(path=None, arch=model.architecture)
    _add_numbers(gguf, writer, name, model, wanted)
    _add_vocab(writer, vocab)
    kinds = {tensor.name: type_of(gguf, tensor.shape, wanted) for tensor in model.tensors}
    for tensor in model.tensors:
        size = nbytes_of(gguf, tensor.shape, kinds[tensor.name])
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kinds[tensor.name])
    with atomic_file(path) as file:
        # The writer would open a file under its own name; it takes one that is open.
        writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY
        with output_errors(path):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        for tensor in model.tensors:
            data = encode(gguf, tensor.produce(), kinds[tensor.name])
            if data.dtype == np.float16 and not np.isfinite(data).all():
                raise CheckpointError(
                    f"{tensor.name} has values beyond float16, or none at all; use --dtype bf16 or f32"
                )
            with output_errors(path):
                writer.write_tensor_data(data)
            advance(data.nbytes)


def _add_numbers(gguf: Any, writer: Any, name: str, model: GgufModel, wanted: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if wanted in PLAIN:
        writer.add_file_type(gguf.LlamaFileType[PLAIN[wanted]])
    else:
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{wanted}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in model.numbers.items():
        full = f"{model.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        else:
            writer.add_uint32(full, value)


def _add_vocab(writer: Any, vocab: Vocab) -> None:
    writer.add_tokenizer_model(vocab.model)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    if vocab.pre is not None:
        writer.add_tokenizer_pre(vocab.pre)
    if vocab.merges:
        writer.add_token_merges(vocab.merges)
    if vocab.scores:
        writer.add_token_scores(vocab.scores)
        writer.add_add_space_prefix(vocab.space_prefix)
    for kind, index in vocab.special_ids.items():
        getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_eos_token(vocab.add_eos)
    if vocab.chat_template:
        writer.add_chat_template(vocab.chat_template)
