"""The backward pass that says what errors of each layer cost the output: one for each batch, of a sampled score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gqakit.calibration.gradient_sums import GradientSums
from gqakit.calibration.sampled_output import sampled_score
from gqakit.core.gradients import LayerGradients
from gqakit.data.samples import Batch, as_batches, positions_of
from gqakit.errors import GqakitError
from gqakit.models.attention_hook import Look, watched_attention
from gqakit.models.outputs import Output
from gqakit.models.processes import ALONE, Processes
from gqakit.models.spec import ModelSpec


class NoGradientError(GqakitError):
    """The model cannot be differentiated; says why."""


def collect_gradients(
    model: PreTrainedModel,
    spec: ModelSpec,
    batches: Tensor | Iterable[Batch],
    progress: Callable[[int], None] = lambda n: None,
    processes: Processes = ALONE,
    *,
    seed: int = 0,
) -> dict[int, LayerGradients]:
    """Gradients at every attention layer over some input, from one forward and one backward pass a batch.

    Weights get no gradients: it takes the memory of one batch's activations.

    Args:
        model, spec, batches: as for `collect_statistics`.
        progress: called with the positions just seen.
        processes: that share the input; each draws for itself, and gets the sums over all of it.
        seed: of what is drawn from the model's output.

    Raises:
        DataError: a gradient is not finite; names the layer.
        NoGradientError: the model, or its attention, cannot be differentiated.
    """
    device = next(model.parameters()).device
    layers = [GradientSums(spec, layer) for layer in range(spec.num_layers)]
    with _watched(model, spec, layers), torch.enable_grad():
        for index, batch in enumerate(as_batches(batches)):
            rng = torch.Generator().manual_seed(seed + index + (processes.rank << 24))
            inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
            try:
                output = Output.of(model(**inputs))
                sampled_score(output, rng).backward()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                raise NoGradientError(" ".join(str(error).split())[:200]) from error
            progress(positions_of(batch))
            for sums in layers:
                if sums.batches <= index:
                    raise NoGradientError(f"no gradient came to the attention of layer {sums.name}")
    found: dict[int, LayerGradients] = {}
    for index in reversed(range(len(layers))):  # where something went wrong first, on the way back
        found[index] = layers[index].gradients(processes)
    return dict(sorted(found.items()))


@contextmanager
def _watched(model: PreTrainedModel, spec: ModelSpec, layers: list[GradientSums]) -> Iterator[None]:
    """The model with gradients from its first blocks on, and every attention layer reporting to its sums."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = {site.stack.block: spec.block(model, layer) for layer, site in reversed([*enumerate(spec.sites)])}
    handles = [block.register_forward_pre_hook(_begin, with_kwargs=True) for block in first.values()]
    try:
        model.requires_grad_(False)
        with reporting(model, spec, dict(enumerate(layers))):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def reporting(model: PreTrainedModel, spec: ModelSpec, layers: Mapping[int, GradientSums]) -> Iterator[None]:
    """The model with some of its attention layers reporting to their sums."""
    handles: list[Any] = []
    looks: dict[nn.Module, Look] = {}
    try:
        for index, sums in layers.items():
            looks[spec.attention_module(model, index)] = sums.look
            seen = zip(("query", "key"), (sums.see_queries, sums.see_keys), spec.norms, strict=True)
            for role, see, norm in seen:
                module = spec.projection(model, index, role)
                if spec.behind_norm is not None:
                    module = spec.norm(model, index, norm)
                handles.append(module.register_forward_hook(see))
            output = spec.projection(model, index, "output")
            handles.append(output.register_forward_pre_hook(sums.see_delivered))
        with watched_attention(model, looks):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _begin(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What enters a stack, as where gradients end."""
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}
