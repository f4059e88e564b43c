"""`generate`: a continuation, to read with one's own eyes."""

from __future__ import annotations

from typing import Any

import torch

from gqakit.errors import UsageError
from gqakit.models.inspection import open_model
from gqakit.models.running import load_model, load_tokenizer


def generate(
    model: str,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    dtype: str = "float32",
    device: str = "auto",
) -> str:
    """The model's continuation of a prompt; greedy at temperature 0.

    Args:
        model: directory or hub name, source or converted.
        prompt: what to continue.
        max_new_tokens: at most so many.
        temperature: 0 for the most likely token each time, else sampling.
        seed: of the sampling.
        chat: wrap the prompt as a user's message, with the model's chat template.
        dtype: precision to run in.
        device: "cpu", "cuda" or "auto".

    Raises:
        CheckpointError, FamilyError, UsageError.
    """
    checkpoint, _ = open_model(model)
    tokenizer = load_tokenizer(checkpoint)
    if chat:
        if not tokenizer.chat_template:
            raise UsageError(f"{model} has no chat template; leave out --chat")
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    running: Any = load_model(checkpoint, dtype, device)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).to(running.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise UsageError("the prompt is empty")
    if temperature > 0:
        torch.manual_seed(seed)
        choice: dict[str, Any] = {"do_sample": True, "temperature": temperature}
    else:
        choice = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode():
        ids = running.generate(**inputs, max_new_tokens=max_new_tokens, **choice)
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True)
