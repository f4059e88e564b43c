"""The source's logits are kept for what is compared with it, and scores are those of running it each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from gqakit.evaluation.language import score_language
from gqakit.evaluation.runners import Remembered, Whole


class Counted(Whole):
    """A model that counts its runs."""

    runs = 0

    def run(self, window: int, batch: object) -> object:
        self.runs += 1
        return super().run(window, batch)  # pyright: ignore[reportArgumentType]


def tiny(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("room", "runs"), [(10**6, 3), (2 * 10 * 50 * 4, 4), (0, 6)])
def test_a_window_is_run_once_where_its_logits_have_room(room: int, runs: int) -> None:
    windows = torch.randint(0, 50, (3, 10))  # logits of a window take 10 x 50 x 4 bytes
    source, other = Counted(tiny(0)), tiny(1)
    kept = Remembered(source, room)
    alone = score_language(kept, windows)
    assert alone == score_language(tiny(0), windows)
    assert score_language(other, windows, kept) == score_language(other, windows, tiny(0))
    assert source.runs == runs
