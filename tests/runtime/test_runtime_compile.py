"""Compiled models compute what they compute eagerly."""

import pytest
import torch
from runtime_models import DIFFERING, pair, tokens
from transformers import DynamicCache


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@torch.no_grad()
def test_compiled_prefill_and_decode():
    torch.compiler.reset()
    model, _ = pair("llama", DIFFERING)  # its last layer has the same maps
    ids = tokens()
    outs = []
    # The graph is what may go wrong here, so no machine code is made of it.
    for run in (model, torch.compile(model, backend="aot_eager")):
        cache = DynamicCache(config=model.config)
        prefill = run(ids[:, :8], past_key_values=cache).logits
        steps = [run(ids[:, i : i + 1], past_key_values=cache).logits for i in range(8, 11)]
        outs.append(torch.cat([prefill, *steps], 1))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)
