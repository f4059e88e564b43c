"""Recognise checkpoints whose weights are stored quantised: their numbers are codes, not values to merge.

MXFP4, in which gpt-oss is published, holds the experts alone in codes; nothing of these is merged, so they are copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gqakit.errors import CheckpointError

from .header import TensorInfo
from .index import listed

_FIX = (
    "Load it dequantised and save it (model.dequantize() and save_pretrained in transformers), then convert."
)
_INTEGERS = {"U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"}
_NARROW = ("F4", "F6_", "F8_")


def check_not_quantised(directory: Path, config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> None:
    """Raises CheckpointError if the config declares a quantisation or a weight has a quantised dtype.

    That of experts in MXFP4 is let through.
    """
    experts = _method(config.get("quantization_config")) == "mxfp4"
    for where, part in _parts(config):
        for key in ("quantization_config", "compression_config"):
            if part.get(key) and not (experts and (where, key) == ("", "quantization_config")):
                raise CheckpointError(
                    f"{directory}: the weights are quantised: config.json has {where}{key} "
                    f"({_named(part[key])}), expected plain floating-point weights. {_FIX}"
                )
    codes = [f"{info.name} ({info.dtype})" for info in tensors if _holds_codes(info, experts)]
    if codes:
        raise CheckpointError(
            f"{directory}: {len(codes)} weights are stored quantised: {listed(codes)}; "
            f"expected floating-point weights. {_FIX}"
        )


def _parts(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The config and its sub-configs (text_config, ...), each with its prefix."""
    nested = [(f"{key}.", value) for key, value in config.items() if isinstance(value, dict)]
    return [("", config), *nested]


def _method(value: Any) -> Any:
    return value.get("quant_method") if isinstance(value, dict) else None


def _named(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    bits = next((f", {n}-bit" for n in (4, 8) if value.get(f"load_in_{n}bit") is True), "")
    return f"method {_method(value) or 'not named'}{bits}"


def _holds_codes(info: TensorInfo, experts: bool) -> bool:
    if experts and ".experts." in info.name and info.name.endswith(("_blocks", "_scales")):
        return False
    if info.dtype.startswith(_NARROW):
        return True
    # Integer buffers are ordinary (position_ids, causal masks); integer matrices named as weights are not.
    last = info.name.rsplit(".", 1)[-1]
    named = "weight" in last or last == "W_q" or last.endswith("_blocks")
    return info.dtype in _INTEGERS and len(info.shape) >= 2 and named
