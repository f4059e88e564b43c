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

_BASE = "Convert the model that it was quantised from; its model card names that as base_model."
_LOADED = "Load it in transformers with quantization_config={}(dequantize=True) and save_pretrained, then convert that."
_CALLED = "Load it in transformers, call model.dequantize() and save_pretrained, then convert that."
# What transformers undoes, and how; of the others only the model is left that they were made from.
_FIXES = {
    **dict.fromkeys(("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "higgs"), _CALLED),
    "fp8": _LOADED.format("FineGrainedFP8Config"),
    "compressed-tensors": _LOADED.format("CompressedTensorsConfig"),
}
_INTEGERS = {"U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"}
_NARROW = ("F4", "F6_", "F8_")


def check_not_quantised(directory: Path, config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> None:
    """Raises CheckpointError if the config declares a quantisation or a weight has a quantised dtype.

    That of experts in MXFP4 is let through.
    """
    experts = _method(config.get("quantization_config")) == "mxfp4"
    for where, part in _parts(config):
        for key in ("quantization_config", "compression_config"):
            if part.get(key) is not None and not (experts and (where, key) == ("", "quantization_config")):
                raise CheckpointError(
                    f"{directory}: the weights are quantised: config.json has {where}{key} "
                    f"({_named(part[key])}), expected plain floating-point weights. {_fix(part[key])}"
                )
    codes = [f"{info.name} ({info.dtype})" for info in tensors if _holds_codes(info, experts)]
    if codes:
        raise CheckpointError(
            f"{directory}: {len(codes)} weights are stored quantised: {listed(codes)}; "
            f"expected floating-point weights. {_BASE}"
        )


def _parts(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The config and its sub-configs (text_config, ...), each with its prefix."""
    nested = [(f"{key}.", value) for key, value in config.items() if isinstance(value, dict)]
    return [("", config), *nested]


def _method(value: Any) -> Any:
    return value.get("quant_method") if isinstance(value, dict) else None


def _fix(value: Any) -> str:
    if value == {}:
        return "Remove the empty entry, which transformers refuses as well."
    loaded = isinstance(value, dict) and (value.get("load_in_4bit") or value.get("load_in_8bit"))
    return _CALLED if loaded else _FIXES.get(str(_method(value)), _BASE)


def _named(value: Any) -> str:
    if not isinstance(value, dict) or not value:
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
