"""Fixtures that the end-to-end and the command-line tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, succeeds
from tiny_models import build

Models = Callable[..., Path]
_built: dict[Any, Path] = {}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test works in an empty directory of its own and never asks the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A tiny model, built once for each choice; see `tiny_models.build`. Not to be changed."""

    def get(family: str = "llama", **options: Any) -> Path:
        key = (family, *sorted(options.items(), key=str))
        if key not in _built:
            _built[key] = build(tmp_path_factory.mktemp("models") / family, family, **options)
        return _built[key]

    return get


@pytest.fixture
def copy(model: Models, tmp_path: Path) -> Models:
    """A copy of a tiny model in the working directory, to be damaged."""

    def get(*args: Any, name: str = "model", **options: Any) -> Path:
        return Path(shutil.copytree(model(*args, **options), tmp_path / name))

    return get


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Moments of a model on a little of the bundled text, taken once."""

    def get(source: Path) -> Path:
        if source not in _built:
            path = tmp_path_factory.mktemp("moments") / "m.safetensors"
            succeeds("calibrate", source, "-o", path, *SMALL)
            _built[source] = path
        return _built[source]

    return get
