"""`bench`: every checkpoint at every size, caches as they are, refusals in one line. Times themselves are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import QUICK, refused, succeeds

SIZES = ("--contexts", "24,48", "--batches", "1,2", "--rounds", 1, "--new-tokens", 2)


def test_caches_are_measured_and_the_source_is_the_measure(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    source, half = model(), tmp_path / "half"
    succeeds("convert", source, "--kv-heads", 4, "-o", half, *QUICK)
    rows = json.loads(succeeds("bench", source, half, *SIZES, "--json").out)
    assert [(row["context"], row["batch"]) for row in rows[::2]] == [(24, 1), (24, 2), (48, 1), (48, 2)]
    for original, smaller in zip(rows[::2], rows[1::2], strict=True):
        assert (
            original["cache_bytes"] == 1024 * original["context"] * original["batch"]
        )  # bytes per token of the source
        assert smaller["cache_bytes"] * 2 == original["cache_bytes"]
        assert original["prefill_ratio"] == original["decode_ratio"] == 1
        assert min(row[name] for row in (original, smaller) for name in ("prefill", "decode")) > 0
        assert original["peak_bytes"] is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--contexts", "0"), "above 0"),
        (("--contexts", "9999"), "it has 256"),
        (("--batches", "x"), "--batches"),
    ],
)
def test_bad_input_is_one_line(model: Callable[..., Path], given: tuple[str, ...], says: str) -> None:
    assert says in refused(2, "bench", model(), *given)
