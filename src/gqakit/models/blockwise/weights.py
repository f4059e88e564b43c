"""A model whose parameters have no values until they are needed, and have none again afterwards."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError
from gqakit.models.architectures import class_of, family_of, has_no_head
from gqakit.models.load import is_headless, loading, really_missing
from gqakit.models.outputs import predicts_tokens
from gqakit.models.registration import register


class Weights:
    """The model of a checkpoint without weights, and the way to fill some of them for a while.

    Parameters lie on the meta device; buffers, such as rotary frequencies, are real. Tensors that transformers renames,
    joins or cuts as it loads a checkpoint are filled as it would fill them.

    Args:
        checkpoint: stock or grouped. dtype, device: of what is filled.

    Attributes:
        unused: tensors of the checkpoint that no parameter is made of.

    Raises:
        CheckpointError: transformers refuses the config, or tensors of the model are missing.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        config, family = checkpoint.config, family_of(checkpoint.config)
        self.model = _without_weights(checkpoint, class_of(config), dtype, device)
        self._plan()
        missing = self._missing()
        if missing and family is not None and is_headless(family, self.model, missing):
            bare = {**config, "architectures": [family.classes["AutoModel"]]}
            self.model = _without_weights(checkpoint, class_of(bare), dtype, device)
            self._plan()
            missing = self._missing()
        if missing:
            raise CheckpointError(
                f"{checkpoint.path}: {len(missing)} tensors of the model are missing, first {missing[0]!r}. "
                "The checkpoint is incomplete; copy or convert it again."
            )

    def _plan(self) -> None:
        """Find for each parameter (and stored buffer) the tensors of the checkpoint that it is made of."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        model, known = self.model, self.model.state_dict()
        transforms = get_model_conversion_mapping(model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._converters = {pattern: each for each in converters for pattern in each.source_patterns}
        self._sources: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        self.unused: list[str] = []
        self._group: dict[str, str] = {}  # of each parameter: the first that is made of the same tensors
        prefix = model.base_model_prefix
        for name in _naturally(self.checkpoint.tensors):
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
            if renamed not in known and name in known:
                renamed, pattern = rename_source_key(name, [], [], prefix, known)
            if renamed not in known:
                self.unused.append(name)
                continue
            self._sources[renamed].append((name, pattern))
            for target in self._targets(renamed, pattern):
                self._group.setdefault(target, renamed)
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for one, other in [*tied.items(), *((b, a) for a, b in tied.items())]:
            if one not in self._group and other in self._group:
                self._group[one] = self._group[other]

    def _targets(self, renamed: str, pattern: str | None) -> list[str]:
        """The parameters that a converter makes of what is renamed to `renamed`."""
        if pattern is None:
            return [renamed]
        targets = self._converters[pattern].target_patterns
        first = next((target for target in targets if target in renamed), None)
        return [renamed] if first is None else [renamed.replace(first, target) for target in targets]

    def _missing(self) -> list[str]:
        # Such as the sinusoids of positions.
        computed = getattr(self.model, "_keys_to_ignore_on_load_missing", None) or ()
        return really_missing(
            name
            for name, _ in self.model.named_parameters()
            if name not in self._group and not any(re.search(each, name) for each in computed)
        )

    def of_other_shape(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Tensors of the checkpoint that do not fit their parameters: name, shape, the shape that the model has.

        What transformers joins or cuts as it loads is not looked at.
        """
        found: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        for target, parameter in self.model.named_parameters():
            sources = self._sources.get(target, [])
            if len(sources) == 1 and sources[0][1] is None:
                name = sources[0][0]
                seen, expected = self.checkpoint.info(name).shape, tuple(parameter.shape)
                found += [(name, seen, expected)] if seen != expected else []
        return found

    def largest(self, blocks: Iterable[nn.Module]) -> int:
        """Bytes of the most weights that are filled at a time, with one tensor as it is read.

        That is one block, the largest, or what lies around them, or the first of a stage while that is entered.
        """
        each = [self._count(block.parameters()) for block in blocks]
        embedding = self.model.get_input_embeddings()
        inside = sum(each)
        around = self._count(self.model.parameters()) - inside
        first = self._count(embedding.parameters()) if isinstance(embedding, nn.Module) else around
        read = max(info.nbytes for info in self.checkpoint.tensors.values())
        return self.dtype.itemsize * max(max(each) + first, around) + read

    @staticmethod
    def _count(parameters: Iterable[nn.Parameter]) -> int:
        return sum(parameter.numel() for parameter in parameters)

    @contextmanager
    def filled(self, module: nn.Module) -> Iterator[None]:
        """A module with its weights, frozen; without them again when the context ends."""
        names = {id(found): name for name, found in self.model.named_modules()}
        kept: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            made: dict[str, dict[str, Tensor]] = {}
            for each in module.modules():
                kept += self._fill(each, names[id(each)], made)
            yield
        finally:
            for owner, leaf, parameter in kept:
                owner._parameters[leaf] = parameter

    @contextmanager
    def filled_when_called(self, outside: Iterable[nn.Module]) -> Iterator[None]:
        """Every module but those in `outside` gets its weights when it is first called, and loses them at the end."""
        excluded = {id(each) for module in outside for each in module.modules()}
        made: dict[str, dict[str, Tensor]] = {}
        kept: list[tuple[nn.Module, str, nn.Parameter]] = []
        handles: list[Any] = []

        def fill(name: str, module: nn.Module, args: Any) -> None:
            kept.extend(self._fill(module, name, made))

        for name, module in self.model.named_modules():
            if id(module) not in excluded and (module._parameters or module._buffers):
                handles.append(module.register_forward_pre_hook(partial(fill, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, leaf, parameter in kept:
                owner._parameters[leaf] = parameter

    def _fill(
        self, module: nn.Module, path: str, made: dict[str, dict[str, Tensor]]
    ) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Give a module's own parameters their values; returns what stood there before."""
        kept: list[tuple[nn.Module, str, nn.Parameter]] = []
        for leaf, parameter in [*module._parameters.items()]:
            if parameter is None or parameter.device.type != "meta":
                continue
            name = f"{path}.{leaf}" if path else leaf
            kept.append((module, leaf, parameter))
            module._parameters[leaf] = nn.Parameter(self._value(name, parameter, made), requires_grad=False)
        for leaf in [*module._buffers]:
            name = f"{path}.{leaf}" if path else leaf
            if leaf not in module._non_persistent_buffers_set and name in self._group:
                buffer = module._buffers[leaf]
                assert buffer is not None
                module._buffers[leaf] = self._value(name, buffer, made)
        return kept

    def _value(self, name: str, like: Tensor, made: dict[str, dict[str, Tensor]]) -> Tensor:
        """A parameter's value; `made` keeps what was made with it of the same tensors, and shares tied ones."""
        group = self._group.get(name)
        if group is None:  # an encoder's pooler that nobody stored and nobody needs
            return torch.zeros(like.shape, dtype=self.dtype, device=self.device)
        if group not in made:
            made[group] = self._converted(group)
        values = made[group]
        value = values.get(name, values.get(group))
        if value is None or value.shape != like.shape:
            seen = None if value is None else tuple(value.shape)
            raise CheckpointError(
                f"{self.checkpoint.path}: {name} should have shape {tuple(like.shape)}, its tensors give {seen}"
            )
        return value

    def _converted(self, group: str) -> dict[str, Tensor]:
        """The parameters made of one group of tensors, by name."""
        sources = self._sources[group]
        if sources[0][1] is None:
            return {group: self._read(sources[0][0])}
        converter = deepcopy(self._converters[sources[0][1]])
        for name, pattern in sources:
            converter.add_tensor(group, name, pattern, partial(self._read, name))  # pyright: ignore[reportArgumentType]
        with loading(self.checkpoint.path):
            made = converter.convert(group, model=self.model, config=self.model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def _read(self, name: str) -> Tensor:
        return self.checkpoint.load(name).to(self.device, self.dtype)


def _naturally(names: Iterable[str]) -> list[str]:
    """Names in the order in which converters want them: numbers by value."""
    from transformers.core_model_loading import dot_natural_key

    return sorted(names, key=dot_natural_key)


def _without_weights(checkpoint: Checkpoint, kind: Any, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model with every parameter on the meta device and every buffer (rotary frequencies) real.

    This is accelerate's `init_empty_weights`, which running by block should not need installed; torch's meta device alone
    would lose the buffers.
    """
    register(str(checkpoint.config.get("model_type")))
    own = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":  # those that are stay tied
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        own(self, name, param)

    with loading(checkpoint.path):
        config = AutoConfig.from_pretrained(str(checkpoint.path), local_files_only=True)
        config.return_dict = True  # outputs are read by their names
        nn.Module.register_parameter = on_meta
        try:
            model = kind._from_config(config, dtype=dtype)
        finally:
            nn.Module.register_parameter = own
    # A block may run twice, and some heads do not pass on that no cache is wanted.
    if not (predicts_tokens(model) or has_no_head(checkpoint.config)):
        model.config.use_cache = False
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model.eval()
