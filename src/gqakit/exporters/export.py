"""`export`: a checkpoint written for another engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from gqakit import __version__
from gqakit.checkpoint import check_output, claimed_directory, copy_side_files, output_lock, side_files
from gqakit.checkpoint.atomic import output_errors, sync_directory
from gqakit.checkpoint.output import check_apart
from gqakit.checkpoint.workspace import MARKER, claimed, clear_claimed, owned
from gqakit.errors import OutputError, UsageError, unknown_name
from gqakit.exporters.gguf_file import gguf_bytes, write_gguf
from gqakit.exporters.gguf_model import describe_gguf
from gqakit.exporters.gguf_tool import odd_rows, run_tool
from gqakit.exporters.gguf_types import BUILT_IN, DTYPES, check_types, load_gguf
from gqakit.exporters.gguf_vocab import read_vocab
from gqakit.exporters.onnx_graph import FILE as ONNX_FILE
from gqakit.exporters.onnx_graph import load_exporter, write_onnx
from gqakit.exporters.source import Source
from gqakit.exporters.uniform import describe_uniform, write_uniform
from gqakit.models.head_layout import Arrangement
from gqakit.progress import Reporter, silent

TARGETS = ("gguf", "uniform", "onnx")
ONNX_SUFFIX, PLAIN = ".partial", "plain.gguf"


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote and what it costs.

    Attributes:
        target: gguf, uniform or onnx.
        out: the file or directory.
        kind: the architecture in GGUF, or the `model_type`.
        how: for `uniform`, pad or equalise; else empty.
        query_heads, kv_heads: of each layer, as the engine gets them.
        bytes_written: of tensors, or of the whole ONNX graph.
        parameters_before, parameters: padding query heads adds some.
        kv_bytes_per_token_before, kv_bytes_per_token: at the checkpoint's precision.
        notes: what else to know.
    """

    target: str
    out: Path
    kind: str
    how: str
    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    bytes_written: int
    parameters_before: int
    parameters: int
    kv_bytes_per_token_before: int
    kv_bytes_per_token: int
    notes: tuple[str, ...]


def export(
    model: str,
    out: Path,
    *,
    to: str,
    how: str | None = None,
    dtype: str | None = None,
    quantise: str | None = None,
    tokenizer_pre: str | None = None,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> ExportResult:
    """Write a checkpoint, grouped or stock, for an engine that cannot read it as it is.

    Args:
        model: directory or hub name.
        out: a file for GGUF, a directory otherwise.
        to: "gguf", "uniform" or "onnx".
        how: for uniform, see `gqakit.exporters.uniform.describe_uniform`.
        dtype: for GGUF: f32, f16 or bf16; None is the checkpoint's own.
        quantise: for GGUF, such as Q8_0, or Q4_K_M with llama.cpp's tool.
        tokenizer_pre: for GGUF, llama.cpp's name of how text is split before BPE, where it is not recognised.
        overwrite: replace what is at `out`.
        progress: see the package.

    Raises:
        UsageError, CheckpointError, FamilyError, OutputError, MissingDependencyError.
    """
    if to not in TARGETS:
        raise unknown_name("target", to, TARGETS)
    given = {"--how": how, "--dtype": dtype, "--quantise": quantise, "--tokenizer-pre": tokenizer_pre}
    fitting = {"gguf": {"--dtype", "--quantise", "--tokenizer-pre"}, "uniform": {"--how"}, "onnx": set()}[to]
    if misplaced := [name for name, value in given.items() if value is not None and name not in fitting]:
        raise UsageError(f"{', '.join(misplaced)} does not go with --to {to}")
    if to == "gguf":
        return _gguf(model, out, dtype, quantise, tokenizer_pre, overwrite, progress)
    if to == "uniform":
        return _uniform(model, out, how or "auto", overwrite, progress)
    return _onnx(model, out, overwrite, progress)


def _gguf(
    model: str,
    out: Path,
    dtype: str | None,
    quantise: str | None,
    pre: str | None,
    overwrite: bool,
    progress: Reporter,
) -> ExportResult:
    tool = check_types(dtype, quantise)
    load_gguf()
    source = Source.open(model)
    described = describe_gguf(source)
    vocab = read_vocab(source.checkpoint, pre)
    _check_file(source, out, overwrite)
    stored = source.checkpoint.info(source.spec.tensor(0, "key")).dtype
    wanted = dtype or DTYPES.get(stored, "f32")
    wanted = quantise if quantise in BUILT_IN else wanted
    name = source.checkpoint.path.resolve().name
    with ExitStack() as stack:
        stack.enter_context(output_lock(out))
        plain = out
        if tool is not None:
            plain = stack.enter_context(claimed_directory(out, ".plain", (PLAIN,), keep=False)) / PLAIN
        with progress("export", gguf_bytes(described, wanted), "bytes") as advance:
            write_gguf(plain, name, described, vocab, wanted, advance)
        if tool is not None and quantise is not None:
            with progress(f"quantise to {quantise}", 1, "files") as advance:
                run_tool(tool, plain, out, quantise)
                advance(1)
    notes = (*_refined(source), *described.notes, *_cache_notes(source, described.arrangements))
    if tool is not None and quantise is not None:
        notes += odd_rows({t.shape[-1] for t in described.tensors if len(t.shape) > 1}, quantise)
    if vocab.pre is not None:
        notes += (f"tokenizer.ggml.pre is {vocab.pre}" + ("" if pre else ", as tokenizer.json says"),)
    return _result(
        "gguf", out, described.architecture, "", source, described.arrangements, out.stat().st_size, notes
    )


def _uniform(model: str, out: Path, how: str, overwrite: bool, progress: Reporter) -> ExportResult:
    source = Source.open(model)
    described = describe_uniform(source, how)
    check_output(source.checkpoint, out, overwrite)
    with progress("export", source.checkpoint.nbytes, "bytes") as advance:
        written = write_uniform(
            source, described, out, _card(source, described.how), overwrite=overwrite, advance=advance
        )
    notes = (*_refined(source), *described.notes)
    kind = described.config["model_type"]
    return _result("uniform", out, kind, described.how, source, described.arrangements, written.nbytes, notes)


def _onnx(model: str, out: Path, overwrite: bool, progress: Reporter) -> ExportResult:
    load_exporter()
    source = Source.open(model)
    # By a run that was killed while it replaced an export.
    begun = claimed(out.with_name(out.name + ONNX_SUFFIX)) is not None
    if begun:
        check_apart(source.checkpoint.path, out)
    else:
        check_output(source.checkpoint, out, overwrite=True)  # apart from the source, and no file
    with output_lock(out):
        replaceable = overwrite and (begun or (out / ONNX_FILE).is_file())
        if out.exists() and any(out.iterdir()) and not replaceable:
            raise OutputError(
                f"{out}: is not empty. Choose another directory, or use --overwrite to replace an ONNX export in it."
            )
        names = side_files(source.checkpoint.path)
        files = [ONNX_FILE + "*", "*config.json", *map(escape, names)]
        with claimed_directory(out, ONNX_SUFFIX, files, keep=False) as partial:
            clear_claimed(partial)
            with progress("export", 1, "graphs") as advance:
                write_onnx(source, partial)
                advance(1)
            copy_side_files(source.checkpoint.path, partial, names)
            _move(partial, out)
    size = sum(path.stat().st_size for path in out.glob(ONNX_FILE + "*"))
    arrangements = None
    notes = (
        "one forward pass (prefill) in float32: input_ids and attention_mask in, logits out; it has no cache",
    )
    return _result("onnx", out, source.spec.model_type, "", source, arrangements, size, notes)


def _move(partial: Path, out: Path) -> None:
    """Put an ONNX export where it belongs, whole at once; or file by file, `model.onnx` last, where others lie too."""
    with output_errors(out):
        if not out.exists() or not any(out.iterdir()):
            os.replace(partial, out)
        else:
            for old in (ONNX_FILE, ONNX_FILE + ".data"):  # the graph before its data
                (out / old).unlink(missing_ok=True)
            for name in sorted(owned(partial), key=lambda name: (name == ONNX_FILE, name)):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / name, out / name)
        (out / MARKER).unlink(missing_ok=True)
    sync_directory(out)
    sync_directory(out.resolve().parent)


def _check_file(source: Source, out: Path, overwrite: bool) -> None:
    folder = out.absolute().parent
    if source.checkpoint.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise OutputError(f"{out}: lies inside the source, which is never written to. Choose another place.")
    if out.is_dir():
        raise OutputError(f"{out}: is a directory, expected a file name such as {out / 'model.gguf'}.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists. Choose another name, or use --overwrite to replace it.")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _refined(source: Source) -> tuple[str, ...]:
    if source.is_shared:
        return ()
    return (
        "keys and values are grouped apart; the engine keeps them together, so each layer has the KV heads of the common "
        "refinement of its two maps. Plan with --kv-maps shared for a smaller cache there",
    )


def _cache_notes(source: Source, arrangements: list[Arrangement]) -> tuple[str, ...]:
    heads = sum(arrangement.num_kv_heads for arrangement in arrangements)
    notes = [
        f"llama.cpp keeps the cache in f16 by default: {2 * heads * source.spec.head_dim * 2:,} bytes per token"
    ]
    if len({arrangement.num_kv_heads for arrangement in arrangements}) > 1:
        notes.append(
            "run it with flash attention (-fa on): without, every layer's V takes the room of the largest"
        )
    return tuple(notes)


def _result(
    target: str,
    out: Path,
    kind: str,
    how: str,
    source: Source,
    arrangements: Sequence[Arrangement] | None,
    nbytes: int,
    notes: tuple[str, ...],
) -> ExportResult:
    spec = source.spec
    before = sum(_count(info.shape) for info in source.checkpoint.tensors.values())
    if arrangements is None:
        heads, kv_heads, cache, extra = (spec.num_heads,) * spec.num_layers, spec.key_heads, spec.cache, 0
    else:
        heads = tuple(arrangement.num_heads for arrangement in arrangements)
        kv_heads = tuple(arrangement.num_kv_heads for arrangement in arrangements)
        cache = source.cache(list(arrangements))
        rows = sum(2 * (n - spec.num_heads) for n in heads)
        rows += sum(2 * n - k - v for n, k, v in zip(kv_heads, spec.key_heads, spec.value_heads, strict=True))
        extra = rows * spec.head_dim * spec.hidden_size
    return ExportResult(
        target=target,
        out=out,
        kind=kind,
        how=how,
        query_heads=heads,
        kv_heads=kv_heads,
        bytes_written=nbytes,
        parameters_before=before,
        parameters=before + extra,
        kv_bytes_per_token_before=spec.cache.bytes_per_token,
        kv_bytes_per_token=cache.bytes_per_token,
        notes=notes,
    )


def _count(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _card(source: Source, how: str) -> str:
    name = source.checkpoint.path.resolve().name
    done = {
        "pad": "groups of query heads were padded with heads that nothing reads",
        "equalise": "KV heads were written again until all groups had one size",
    }[how]
    return (
        f"---\nbase_model: {name}\nlibrary_name: transformers\ntags: [gqakit, kv-cache]\n---\n\n# {name}, uniform\n\n"
        f"Exported by gqakit {__version__} from the grouped checkpoint **{name}**; {done}. It computes the same.\n"
    )
