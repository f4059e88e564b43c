"""What all tests share: shapes in the core's signatures are checked, threads are few, models are tiny."""

from __future__ import annotations

import jaxtyping

# Before anything imports gqakit.core, or its signatures stay unchecked.
jaxtyping.install_import_hook("gqakit.core", "beartype.beartype")

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Examples are the same on every run: a failure that comes and goes helps nobody.
settings.register_profile("gqakit", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "mutation", settings.get_profile("gqakit"), max_examples=10
)  # benchmarks/mutation.py
settings.load_profile("gqakit")
torch.set_num_threads(1)  # the tensors are tiny: threads only wait for each other


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds (once for each choice) a random Llama with 4 layers, 8 query heads of width 4, and saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    built: dict[tuple[int, int], Path] = {}

    def build(kv_heads: int = 8, seed: int = 0) -> Path:
        if (kv_heads, seed) not in built:
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=kv_heads,
                max_position_embeddings=256,
                initializer_range=0.2,
            )
            path = tmp_path_factory.mktemp(f"llama-{kv_heads}-{seed}")
            LlamaForCausalLM(config).save_pretrained(path)
            built[kv_heads, seed] = path
        return built[kv_heads, seed]

    return build
