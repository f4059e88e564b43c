"""`generate`: a continuation, to read with one's own eyes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.errors import UsageError
from gqakit.models.run_options import KV_CACHE, RUN, RunOptions
from gqakit.options import option, takes


@dataclass(frozen=True)
class GenerateOptions(RunOptions):
    """How a prompt is continued."""

    max_new_tokens: int = option(64, "Most tokens to write.", at_least=1)
    temperature: float = option(0.0, "0 takes the most likely token each time.", at_least=0)
    seed: int = option(0, "Of the sampling, at a temperature above 0.", at_least=0)
    chat: bool = option(False, "Wrap the prompt as a user's message, with the model's chat template.")
    kv_cache: str | None = option(None, KV_CACHE, panel=RUN)


@takes(GenerateOptions)
def generate(model: str | Path, prompt: str, options: GenerateOptions) -> str:
    """The model's continuation of a prompt, or its answer to it; greedy at temperature 0.

    Args:
        model: directory or hub name, source or converted.
        prompt: what to continue.
        options: see `GenerateOptions`; also as keywords.

    Raises:
        GqakitError: one of CheckpointError, FamilyError, UsageError.
    """
    import torch

    from gqakit.models.architectures import architecture, writes_text
    from gqakit.models.rounding import check_cache_types, rounded_cache
    from gqakit.models.running import load_model, load_tokenizer
    from gqakit.models.source import Source

    source = Source.open(model)
    if not writes_text(source.checkpoint.config):
        raise UsageError(f"{model} is a {architecture(source.checkpoint.config)}, which writes no text")
    checkpoint, types = source.checkpoint, check_cache_types(options.kv_cache, source.spec)
    tokenizer = load_tokenizer(checkpoint)
    if options.chat:
        prompt = as_chat(tokenizer, model, prompt)
    running: Any = load_model(checkpoint, options.precision, options.device)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not options.chat).to(running.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise UsageError("the prompt is empty")
    choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if options.temperature > 0:
        torch.manual_seed(options.seed)
        choice = {"do_sample": True, "temperature": options.temperature}
    with torch.inference_mode(), rounded_cache(running, source.spec, types):
        ids = running.generate(**inputs, max_new_tokens=options.max_new_tokens, **choice)
    begin = 0 if running.config.is_encoder_decoder else length
    return tokenizer.decode(ids[0, begin:], skip_special_tokens=True)


def as_chat(tokenizer: Any, model: str | Path, message: str) -> str:
    """A user's message in the model's chat template, up to where the answer begins.

    Raises:
        UsageError: the tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"{model} has no chat template; leave out `chat=True`")
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
