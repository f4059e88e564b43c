"""`export`: a checkpoint written for another engine."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from gqakit.checkpoint import check_output, claimed_directory, copy_side_files, output_lock, side_files
from gqakit.checkpoint.atomic import output_errors, sync_directory
from gqakit.checkpoint.output import check_apart
from gqakit.checkpoint.workspace import MARKER, claimed, clear_claimed, owned
from gqakit.errors import OutputError
from gqakit.exporters.gguf_file import check_gguf, find_tool, gguf_bytes, odd_rows, run_tool, write_gguf
from gqakit.exporters.gguf_model import describe_gguf
from gqakit.exporters.gguf_vocab import read_vocab
from gqakit.exporters.nemotron_nas import describe_nas
from gqakit.exporters.onnx_graph import FILE as ONNX_FILE
from gqakit.exporters.onnx_graph import load_exporter, write_onnx
from gqakit.exporters.options import BUILT_IN, DTYPES, ExportOptions
from gqakit.exporters.rearranged import Rearranged, write_rearranged
from gqakit.exporters.source import ExportSource
from gqakit.exporters.uniform import check_saving, describe_uniform
from gqakit.models.head_layout import Arrangement
from gqakit.options import takes
from gqakit.progress import Reporter, silent

ONNX_SUFFIX, PLAIN = ".partial", "plain.gguf"
"""Where an ONNX export is written first, and the GGUF file that llama.cpp's tool quantises."""
ONNX_FILES = (f"{ONNX_FILE}*", f"tmp*/{ONNX_FILE}*", "export.json", "*config.json")
"""What transformers' exporter writes, also into the temporary folder that a killed run leaves."""


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote and what it costs.

    Attributes:
        target: gguf, uniform, nemotron-nas or onnx.
        out: the file or directory.
        kind: the architecture in GGUF, or the `model_type`.
        how: for `uniform`, pad or equalise; else empty.
        query_heads, kv_heads: of each layer, as the engine gets them.
        bytes_written: of tensors, or of the whole file or graph.
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

    def __repr__(self) -> str:
        cache = f"{self.kv_bytes_per_token_before:,} → {self.kv_bytes_per_token:,} bytes per token"
        return f"ExportResult({self.out}, {self.target} {self.kind}, {cache})"


@takes(ExportOptions)
def export(
    model: str | Path, out: str | Path, options: ExportOptions, progress: Reporter = silent
) -> ExportResult:
    """Write a checkpoint, grouped or stock, for an engine that cannot read it as it is.

    Args:
        model: directory or hub name.
        out: a file for GGUF, a directory otherwise.
        options: see `ExportOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        UsageError: also for a uniform checkpoint that would give back all that grouping saved.
        GqakitError: one of CheckpointError, FamilyError, PlanError, OutputError, MissingDependencyError.
    """
    write = {"gguf": _gguf, "uniform": _uniform, "nemotron-nas": _nemotron_nas, "onnx": _onnx}[
        str(options.to)
    ]
    return write(str(model), Path(out), options, progress)


def _gguf(model: str, out: Path, options: ExportOptions, progress: Reporter) -> ExportResult:
    check_gguf()
    tool = find_tool(options.quantise)
    source = ExportSource.open(model)
    described = describe_gguf(source)
    vocab = read_vocab(source.checkpoint, options.tokenizer_pre)
    _check_file(source, out, options.overwrite)
    stored = source.checkpoint.info(source.spec.tensor(0, "key")).dtype.lower()  # such as BF16
    wanted = DTYPES.get(options.dtype or stored, "f32")
    if options.quantise in BUILT_IN:
        wanted = options.quantise
    notes = (*_refined(source), *described.notes, *_cache_notes(source, described.arrangements))
    with ExitStack() as stack:
        stack.enter_context(output_lock(out))
        plain = out
        if tool is not None:
            plain = stack.enter_context(claimed_directory(out, ".plain", (PLAIN,), keep=False)) / PLAIN
        with progress("export", gguf_bytes(described, wanted), "bytes") as advance:
            write_gguf(plain, described, vocab, wanted, advance)
        if tool is not None and options.quantise is not None:
            notes += odd_rows(described, options.quantise)
            with progress(f"quantise to {options.quantise}", 1, "files") as advance:
                run_tool(tool, plain, out, options.quantise)
                advance(1)
    if vocab.pre is not None:
        by = "" if options.tokenizer_pre else ", as tokenizer.json says"
        notes += (f"tokenizer.ggml.pre is {vocab.pre}{by}",)
    made = {"target": "gguf", "kind": described.writer.arch, "how": "", "bytes_written": out.stat().st_size}
    return ExportResult(out=out, notes=notes, **made, **_sizes(source, described.arrangements))


def _uniform(model: str, out: Path, options: ExportOptions, progress: Reporter) -> ExportResult:
    source = ExportSource.open(model)
    described = describe_uniform(source, options.how or "auto")
    if not options.allow_full_cache:
        check_saving(source, described)
    return _rearranged(source, described, out, options, progress)


def _nemotron_nas(model: str, out: Path, options: ExportOptions, progress: Reporter) -> ExportResult:
    source = ExportSource.open(model)
    described = describe_nas(source, allow_full_cache=options.allow_full_cache)
    return _rearranged(source, described, out, options, progress)


def _rearranged(
    source: ExportSource, described: Rearranged, out: Path, options: ExportOptions, progress: Reporter
) -> ExportResult:
    check_output(source.checkpoint, out, options.overwrite)
    with progress("export", source.checkpoint.nbytes, "bytes") as advance:
        written = write_rearranged(source, described, out, overwrite=options.overwrite, advance=advance)
    made = {"target": described.target, "kind": described.config["model_type"], "how": described.how}
    sizes, notes = _sizes(source, described.arrangements), (*_refined(source), *described.notes)
    return ExportResult(out=out, bytes_written=written.nbytes, notes=notes, **made, **sizes)


def _onnx(model: str, out: Path, options: ExportOptions, progress: Reporter) -> ExportResult:
    load_exporter()
    source = ExportSource.open(model)
    _ = source.heads  # which refuses what only transformers runs
    # By a run that was killed while it replaced an export.
    begun = claimed(out.with_name(out.name + ONNX_SUFFIX)) is not None
    if begun:
        check_apart(source.path, out)
    else:
        check_output(source.checkpoint, out, overwrite=True)  # apart from the source, and no file
    with output_lock(out):
        replaceable = options.overwrite and (begun or (out / ONNX_FILE).is_file())
        if out.exists() and any(out.iterdir()) and not replaceable:
            raise OutputError(
                f"{out}: is not empty. Choose another directory, or use `overwrite=True` to replace an ONNX export in it."
            )
        names = side_files(source.path)
        files = [*ONNX_FILES, *map(escape, names)]
        with claimed_directory(out, ONNX_SUFFIX, files, keep=False) as partial:
            clear_claimed(partial)
            with progress("export", 1, "graphs") as advance:
                write_onnx(source, partial)
                advance(1)
            copy_side_files(source.path, partial, names)
            _move(partial, out)
    size = sum(path.stat().st_size for path in out.glob(ONNX_FILE + "*"))
    note = (
        "one forward pass (prefill) in float32: input_ids and attention_mask in, logits out; it has no cache"
    )
    made = {"target": "onnx", "kind": source.spec.model_type, "how": "", "bytes_written": size}
    return ExportResult(out=out, notes=(note,), **made, **_sizes(source, None))


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


def _check_file(source: ExportSource, out: Path, overwrite: bool) -> None:
    folder = out.absolute().parent
    if source.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise OutputError(f"{out}: lies inside the source, which is never written to. Choose another place.")
    if out.is_dir():
        raise OutputError(f"{out}: is a directory, expected a file name such as {out / 'model.gguf'}.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists. Choose another name, or use `overwrite=True` to replace it.")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _refined(source: ExportSource) -> tuple[str, ...]:
    if source.is_shared:
        return ()
    return (
        "keys and values are grouped apart; the engine keeps them together, so each layer has the KV heads of the common "
        "refinement of its two maps. Plan with `kv_maps=shared` for a smaller cache there",
    )


def _cache_notes(source: ExportSource, arrangements: list[Arrangement]) -> tuple[str, ...]:
    heads = sum(arrangement.num_kv_heads for arrangement in arrangements)
    notes = [
        f"llama.cpp keeps the cache in f16 by default: {2 * heads * source.spec.head_dim * 2:,} bytes per token"
    ]
    if len({arrangement.num_kv_heads for arrangement in arrangements}) > 1:
        notes.append(
            "run it with flash attention (-fa on): without, every layer's V takes the room of the largest"
        )
    return tuple(notes)


def _sizes(source: ExportSource, arrangements: list[Arrangement] | None) -> dict[str, Any]:
    """The part of an `ExportResult` that counts heads; without arrangements the heads are the checkpoint's own."""
    spec = source.spec
    before = sum(math.prod(info.shape) for info in source.checkpoint.tensors.values())
    heads, kv_heads, cache, rows = (spec.num_heads,) * spec.num_layers, spec.key_heads, spec.cache, 0
    if arrangements is not None:
        heads = tuple(arrangement.num_heads for arrangement in arrangements)
        kv_heads = tuple(arrangement.num_kv_heads for arrangement in arrangements)
        cache = source.cache(arrangements)
        rows = sum(2 * (n - spec.num_heads) for n in heads)  # of q and o
        rows += sum(2 * n - k - v for n, k, v in zip(kv_heads, spec.key_heads, spec.value_heads, strict=True))
    return {
        "query_heads": heads,
        "kv_heads": kv_heads,
        "parameters_before": before,
        "parameters": before + rows * spec.head_dim * spec.hidden_size,
        "kv_bytes_per_token_before": spec.cache.bytes_per_token,
        "kv_bytes_per_token": cache.bytes_per_token,
    }
