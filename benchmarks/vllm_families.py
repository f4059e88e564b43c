"""Small random checkpoints of the families that run in vLLM, grouped, for vllm_check.py.

    python benchmarks/vllm_families.py FOLDER
    python benchmarks/vllm_check.py FOLDER/* [--native]

The first where gqakit's tests can run, the second where vLLM is installed. Nine query heads of 32 channels, four layers
with groups that differ from layer to layer; `NAME-apart` with keys and values grouped apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gqakit.pipeline import convert

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / each) for each in ("e2e", "export")]
from export_fixtures import APART, UNEQUAL, plan_of  # pyright: ignore[reportMissingImports]  # noqa: E402
from tiny_models import build  # pyright: ignore[reportMissingImports]  # noqa: E402

WINDOWED = ["full_attention", "sliding_attention"] * 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": ("mistral", {"head_dim": 32}),
    "mistral-window": ("mistral", {"head_dim": 32, "sliding_window": 6}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": WINDOWED, "max_window_layers": 4},
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 32, "use_sliding_window": True, "sliding_window": 6, "layer_types": WINDOWED},
    ),
    "phi3": ("phi3", {}),
    "phi3-partial": (
        "phi3",
        {
            "sliding_window": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "mixtral": ("mixtral", {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""By name: the family, and what its config has beside the tests' small one."""


def main() -> None:
    """Make the checkpoints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    size = {"hidden_size": 288, "num_attention_heads": 9, "kv_heads": 9}
    for name, (family, changes) in MODELS.items():
        source = build(
            options.folder.with_name(f"{options.folder.name}-sources") / name, family, **size, **changes
        )
        for suffix, layers in {"": UNEQUAL, "-apart": APART}.items():
            made = options.folder / f"{name}{suffix}"
            convert(str(source), made, plan=plan_of(source, layers), evaluate=False)
            print(made)


if __name__ == "__main__":
    main()
