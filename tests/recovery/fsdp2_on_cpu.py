"""`gqakit` with accelerate's FSDP2 switched on, which it offers on accelerators alone. Run by a test, in several processes.

python -m torch.distributed.run --nproc-per-node 2 fsdp2_on_cpu.py [--die-at STEP] uptrain …   (then runs again)
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer

from gqakit.cli import main
from gqakit.recovery.distil.trainer import DistilTrainer

plain, training_step = Trainer.create_accelerator_and_postprocess, DistilTrainer.training_step


def sharded(self: Trainer) -> None:
    plain(self)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    self.is_fsdp_enabled = True


def checked(self: DistilTrainer, *args: Any) -> Any:
    for model in (self.model_wrapped, self.teacher):
        # What the last layers gather for a forward pass they keep for the backward pass, so not all are.
        assert "DTensor" in {type(parameter).__name__ for parameter in model.parameters()}
    if self.state.global_step == die_at:
        raise Died
    return training_step(self, *args)


class Died(BaseException):
    """Every process stops at the same step; what it had in memory is gone."""


die_at = -1
if sys.argv[1] == "--die-at":
    die_at = int(sys.argv[2])
    del sys.argv[1:3]
Trainer.create_accelerator_and_postprocess, DistilTrainer.training_step = sharded, checked
try:
    main()
except Died:
    die_at = -1
    print("died", file=sys.stderr)
    main()
