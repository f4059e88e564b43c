"""Write a converted checkpoint: streaming, atomic, and able to continue after an interruption.

The order makes an unfinished directory visible: manifest first; shards; side files; extra files; index;
config.json last; then the manifest goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from gqakit.errors import OutputError

from .atomic import PARTIAL, output_errors, sync_directory, write_bytes
from .index import INDEX_NAME, build_index
from .jsonio import canonical, pretty
from .layout import PlannedShard, Replacements, count_parameters, plan_shards
from .manifest import MANIFEST_NAME, FinishedFile, Manifest, is_inside, new_manifest, write_manifest
from .output import check_output, clear_output, clearable
from .reader import Checkpoint
from .sidefiles import copy_side_files, side_files
from .streaming import is_finished, write_shard
from .workspace import claim, claimed, output_lock


@dataclass(frozen=True)
class WriteResult:
    """What a run left in `path`: shard files `written` and `kept` from an earlier run, side files copied.

    `nbytes` counts all tensors of the output, headers not included.
    """

    path: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    side_files: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class WriteJob:
    """What is written besides what is copied.

    Attributes:
        replaced: tensor name -> Replacement, None for one to leave out; each is produced once, in file order, and freed
            when written.
        config: the new config.json (the source's bytes are kept if it is unchanged).
        decides: what determines the output besides the source, as JSON; a changed one is not continued.
        extra_files: relative name -> content, written after the side files, replacing equal names.
        checksum_file: name of a JSON file to write beside the shards, shard file -> sha256 (hex).
        skip_files: which side files of the source, by name, the output is not to have.
    """

    replaced: Replacements
    config: dict[str, Any]
    decides: Mapping[str, Any]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    checksum_file: str | None = None
    skip_files: Callable[[str], bool] = lambda name: False


def write_checkpoint(
    source: Checkpoint,
    out: Path,
    job: WriteJob,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> WriteResult:
    """Write `source` with some tensors replaced or added to the directory `out`.

    Sharding, file names, tensor order and shard metadata stay; a shard without changes is a byte-identical
    copy. Run again after an interruption with the same `job`, it keeps the finished shards and does the
    rest, to the same final bytes.

    Args:
        source: where the tensors and side files come from. out: the directory, locked meanwhile.
        job: see `WriteJob`.
        overwrite: replace the checkpoint in `out`.
        progress: called with the number of bytes just written; the sum is the size of all shards.

    Raises:
        OutputError: `out` cannot be used (see `check_output`) or is in use, the disk refuses, or the job
            contradicts the source.
        CheckpointError: the source cannot be read.

    Errors of `produce` pass through. After an error, KeyboardInterrupt included, the same call continues.
    """
    out = Path(out)
    shards = plan_shards(source, job.replaced)
    config = _config_bytes(source, job.config)
    _check_extra_files(job.extra_files, {shard.name for shard in shards})
    copies = tuple(name for name in side_files(source.path) if not job.skip_files(name))
    fresh = new_manifest(job.decides, source.fingerprint(), _all_files(source, job, shards, copies))
    needed = sum(shard.size for shard in shards) + _small_bytes(source, copies, job.extra_files)
    check_output(source, out, overwrite, job=job.decides, needed_bytes=needed)
    with output_lock(out):
        # Again, behind the lock: another run may have written here meanwhile.
        found = check_output(source, out, overwrite, job=job.decides)
        manifest = _prepare(out, found, fresh)
        written, kept, finished = _write_shards(source, shards, out, manifest, progress)
        if job.checksum_file is not None:
            sums = {shard.name: finished[shard.name].sha256 for shard in shards}
            write_bytes(out / job.checksum_file, pretty(sums))
        copy_side_files(source.path, out, copies)
        for name, data in job.extra_files.items():
            with output_errors(out / name):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(out / name, data)
        nbytes = sum(tensor.info.nbytes for shard in shards for tensor in shard.tensors)
        if source.index is not None:
            weight_map = _weight_map(source.index.weight_map, shards)
            index = build_index(source.index, weight_map, nbytes, count_parameters(shards))
            write_bytes(out / INDEX_NAME, index)
        write_bytes(out / "config.json", config)
        with output_errors(out / MANIFEST_NAME):
            (out / MANIFEST_NAME).unlink()
        sync_directory(out)
    return WriteResult(out, written, kept, copies, nbytes)


def _all_files(
    source: Checkpoint, job: WriteJob, shards: tuple[PlannedShard, ...], copies: tuple[str, ...]
) -> tuple[str, ...]:
    named = {*(shard.name for shard in shards), *copies, *job.extra_files, "config.json"}
    named |= {INDEX_NAME} if source.index is not None else set()
    return tuple(sorted(named | ({job.checksum_file} if job.checksum_file else set())))


def _prepare(out: Path, found: Manifest | None, fresh: Manifest) -> Manifest:
    """Make `out` hold the manifest and the shards it lists, and nothing else of a checkpoint."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    manifest = fresh if found is None else found.model_copy(update={"files": fresh.files})
    before = clearable(out) - {*manifest.finished}  # a list of the run before goes with its manifest
    if claimed(out) is not None:
        claim(out, [*map(escape, fresh.files), MANIFEST_NAME])
    # Before anything is removed: a directory half cleared is then known for one, and can be continued.
    write_manifest(out, manifest.model_copy(update={"files": tuple(sorted({*manifest.files, *before}))}))
    clear_output(out, before)
    return manifest


def _write_shards(
    source: Checkpoint,
    shards: tuple[PlannedShard, ...],
    out: Path,
    manifest: Manifest,
    progress: Callable[[int], None],
) -> tuple[tuple[str, ...], tuple[str, ...], Mapping[str, FinishedFile]]:
    """Write what the manifest does not list as finished; returns names written, names kept, and all files."""
    written, kept = [], []
    for shard in shards:
        record = manifest.finished.get(shard.name)
        if record is not None and is_finished(out / shard.name, shard.size, record):
            kept.append(shard.name)
            progress(shard.size)
            continue
        manifest = manifest.with_finished(shard.name, write_shard(source, shard, out, progress))
        write_manifest(out, manifest)
        written.append(shard.name)
    return tuple(written), tuple(kept), manifest.finished


def _config_bytes(source: Checkpoint, config: dict[str, Any]) -> bytes:
    try:
        unchanged = canonical(config) == canonical(source.config)
        return source.config_bytes if unchanged else pretty(config)
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"config.json: the new config is not JSON ({error}). Give the config as plain strings, "
            "numbers, lists."
        ) from error


def _check_extra_files(extra_files: Mapping[str, bytes], shard_names: set[str]) -> None:
    taken = {*shard_names, "config.json", INDEX_NAME, MANIFEST_NAME}
    for name in extra_files:
        if (
            not is_inside(name)
            or str(PurePosixPath(name)) in taken
            or name.endswith((PARTIAL, ".safetensors"))
        ):
            raise OutputError(
                f"extra file {name!r}: expected a relative name inside the output that is neither a "
                "weight file nor one of config.json, the index and the manifest. Rename it."
            )


def _small_bytes(source: Checkpoint, copies: Iterable[str], extra_files: Mapping[str, bytes]) -> int:
    copied = sum((source.path / name).stat().st_size for name in copies)
    return copied + sum(len(data) for data in extra_files.values())


def _weight_map(source: Mapping[str, str], shards: tuple[PlannedShard, ...]) -> dict[str, str]:
    """Tensor -> shard in the source's order, additions after all others."""
    planned = {tensor.info.name: shard.name for shard in shards for tensor in shard.tensors}
    return {**{name: shard for name, shard in source.items() if name in planned}, **planned}
