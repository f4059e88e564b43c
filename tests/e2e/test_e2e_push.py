"""`--push-to-hub`: what is written goes up whole, and what would fail is said before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import QUICK, refused, succeeds
from tiny_models import hashes

sys.path.append(str(Path(__file__).parents[1] / "checkpoint"))
from test_upload import Hub, hub

__all__ = ["hub"]


def test_a_conversion_goes_up_as_it_lies(hub: Hub, model: Callable[..., Path]) -> None:
    succeeds("convert", model(), "--kv-heads", 4, "-o", "out", "--push-to-hub", "me/small", *QUICK)
    here = {name for name, digest in hashes(Path("out")).items() if digest}
    assert {
        "config.json",
        "README.md",
        "LICENSE",
        "gqakit-plan.json",
        "model.safetensors",
    } <= hub.files.keys()
    assert hub.files == {name: (Path("out") / name).read_bytes() for name in here}


def test_what_would_fail_is_said_before_any_work(
    hub: Hub, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    refused(7, "convert", model(), "--kv-heads", 4, "-o", "out", "--push-to-hub", "me/small", *QUICK)
    assert not Path("out").exists()
