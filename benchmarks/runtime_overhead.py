"""What the grouped runtime costs where there is nothing to group: SmolLM2 with its own heads, against the stock model.

    OMP_NUM_THREADS=1 python benchmarks/runtime_overhead.py

Both models share their weights in memory and take turns in every round, in turn first and second. Times are the processor's
own, of the one thread; ratios are medians over the rounds of the two times of one round, with the quartiles in brackets.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from common import Table, environment, paired_times
from gqakit.models.grouped_config import grouped_config
from gqakit.models.load import load
from gqakit.models.source import Source
from zoo import SMOLLM2, fetch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--prefill", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--context", type=int, nargs="+", default=[16, 512, 2048])
    parser.add_argument("--steps", type=int, default=8, help="decoded tokens per round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(environment())
    stock, grouped = _models()
    ids = torch.randint(3, 49000, (1, 8192), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stock(ids[:, :64]).logits, grouped(ids[:, :64]).logits)
    table = Table("Grouped runtime on the source's own heads", "what", "stock, ms", "grouped, ms", "ratio")
    for length in options.prefill:
        work = [lambda model=model, length=length: model(ids[:, :length]) for model in (stock, grouped)]
        _row(table, f"prefill, {length} positions", work, 1, max(8, options.rounds * 64 // length))
    for context in options.context:
        work = [_decoder(model, ids, context, options.steps) for model in (stock, grouped)]
        _row(table, f"decode at {context} positions", work, options.steps, options.rounds)


def _models() -> list[Any]:
    source = fetch(SMOLLM2)
    stock = load(source, dtype=torch.float32)
    raw = json.loads((source / "config.json").read_text())
    share = raw["num_attention_heads"] // raw["num_key_value_heads"]
    heads = [head // share for head in range(raw["num_attention_heads"])]
    spec = Source.open(source).spec
    config = grouped_config(raw, spec, [(heads, heads)] * raw["num_hidden_layers"])
    grouped = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    grouped.load_state_dict(stock.state_dict(), assign=True)
    return [stock, grouped]


def _decoder(model: Any, ids: torch.Tensor, context: int, steps: int) -> Any:
    cache = DynamicCache(config=model.config)
    model(ids[:, :context], past_key_values=cache, logits_to_keep=1)

    def decode() -> None:
        for step in range(steps):
            model(ids[:, step : step + 1], past_key_values=cache)
        cache.crop(-steps)

    return decode


def _row(table: Table, name: str, work: list[Any], steps: int, rounds: int) -> None:
    medians, ratio = paired_times(work, rounds)
    table.row(name, *(f"{seconds / steps * 1e3:.1f}" for seconds in medians), ratio)


if __name__ == "__main__":
    main()
