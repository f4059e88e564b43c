"""A model run block by block gives what the whole model gives, whatever its family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import ALONE, VARIANTS, build_family, inputs_of

import gqakit
from gqakit.errors import OutputError
from gqakit.models.blockwise.blocks import RUN_WHOLE, Blocks
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.blockwise.states import States
from gqakit.models.blockwise.stream import entering_key, stream
from gqakit.models.families import FAMILIES
from gqakit.models.outputs import Output
from gqakit.models.source import Source


def windows(variant: str) -> dict[int, dict[str, Any]]:
    """Three inputs, one of them shorter where that can be."""
    batch: dict[str, Any] = inputs_of(variant)
    cached = {"use_cache": False} if FAMILIES[VARIANTS[variant][0]].stacks[-1].cached else {}
    parts = {n: {k: v[i : i + 1] for k, v in batch.items()} for n, i in enumerate((0, 1, 0))}
    parts[2] = {k: v[:, :-3] if k.endswith("input_ids") else v for k, v in parts[2].items()}
    return {window: {**each, **cached} for window, each in parts.items()}


WHOLE = sorted(
    {*RUN_WHOLE} & {*VARIANTS} | {f"{family}_{stack}" for family, stack in ALONE if family in RUN_WHOLE}
)
"""Those that are not run block by block, one kind of layers or one tower alone among them."""


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"whisper_encoder", "t5_everything", *WHOLE}))
def test_blocks_are_the_model(tmp_path: Path, variant: str) -> None:
    source = Source.open(build_family(tmp_path / "m", variant)).with_all_stacks()
    blocks, batches = Blocks(source.checkpoint, source.spec), windows(variant)
    stream(blocks, batches, keep=True)
    whole = gqakit.load(source.path, dtype=torch.float32)
    with blocks.around(), torch.no_grad():
        for window, batch in batches.items():
            ours, theirs = Output.of(blocks.leaving(window, batch)), Output.of(whole(**batch))
            for mine, its in zip(ours.values, theirs.values, strict=True):
                # A processor may round products of other shapes otherwise: by the largest value, not by each.
                torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6 * max(1.0, float(its.abs().max())))
    assert all(parameter.device.type == "meta" for parameter in blocks.model.parameters())
    _repeats(blocks, batches)


@pytest.mark.parametrize("variant", WHOLE)
def test_families_that_run_whole_say_so(tmp_path: Path, variant: str) -> None:
    source = Source.open(build_family(tmp_path / "m", variant)).with_all_stacks()
    with pytest.raises(NotByBlocks, match="its "):
        Blocks(source.checkpoint, source.spec)


def _repeats(blocks: Blocks, batches: dict[int, Any]) -> None:
    """Every block can be run again from what entered it, and differentiated."""
    for index in reversed(range(blocks.count)):
        with blocks.block(index) as block:
            hidden = blocks.states.get(entering_key(index, 1)).clone().requires_grad_()
            out = block(hidden, 1)
            inner = index + 1 < blocks.count and blocks.stage_of(index) is blocks.stage_of(index + 1)
            if inner:
                torch.testing.assert_close(out.detach(), blocks.states.get(entering_key(index + 1, 1)))
            (gradient,) = torch.autograd.grad(out.square().sum(), hidden)
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda block, hidden, **how: (type(block).forward(block, hidden, **how),), "returns other things"),
        (
            lambda block, hidden, **how: type(block).forward(block, hidden.mul_(1.5), **how),
            "changes the hidden states",
        ),
    ],
)
def test_blocks_that_are_no_functions_of_their_input(tiny_llama: Any, forward: Any, said: str) -> None:
    source = Source.open(tiny_llama())
    blocks = Blocks(source.checkpoint, source.spec)
    odd = blocks.stages[0].blocks[2]
    odd.forward = partial(forward, odd)
    with pytest.raises(NotByBlocks, match=said):
        stream(blocks, {0: {"input_ids": torch.arange(9)[None], "use_cache": False}})


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda hidden: 2 * hidden, "changes hidden states between its blocks"),
        (lambda hidden: hidden.mul_(2), "changes hidden states between its blocks"),
    ],
)
def test_models_that_do_more_between_their_blocks(tiny_llama: Any, between: Any, said: str) -> None:
    source = Source.open(tiny_llama())
    blocks = Blocks(source.checkpoint, source.spec)
    block = blocks.stages[0].blocks[1]
    block.register_forward_pre_hook(lambda module, args: (between(args[0]), *args[1:]))
    with pytest.raises(NotByBlocks, match=said):
        stream(blocks, {0: {"input_ids": torch.arange(9)[None], "use_cache": False}})


def test_states_beyond_the_memory_lie_in_files_of_their_run(tmp_path: Path) -> None:
    first = States(100, tmp_path, {"text": "a"})
    kept = {
        str(n): torch.randn(3, 5).to(kind)
        for n, kind in enumerate((torch.float32, torch.bfloat16, torch.int64))
    }
    for key, tensor in kept.items():
        first.put(key, tensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.hidden"]
    for key, tensor in kept.items():
        assert torch.equal(first.get(key), tensor)
    with pytest.raises(OutputError, match="another run"):
        States(0, tmp_path, {"text": "b"}).get("2")
    (tmp_path / "2.hidden").write_bytes((tmp_path / "2.hidden").read_bytes()[:-1])
    with pytest.raises(OutputError, match="ends early"):
        first.get("2")
