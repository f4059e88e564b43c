"""`sample`: text of the model's own, to calibrate or to train on where there is no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.errors import FamilyError, OutputError, UsageError
from gqakit.models.generate import as_chat
from gqakit.models.run_options import RunOptions
from gqakit.options import option, takes
from gqakit.progress import Reporter, silent

AT_ONCE = 8
"""Samples written at a time: their caches lie in memory together."""


@dataclass(frozen=True)
class SampleOptions(RunOptions):
    """How much a model writes, and how."""

    tokens: int = option(12288, "Tokens to write, rounded up to whole samples.", at_least=1)
    window: int = option(512, "Tokens per sample.", at_least=2)
    temperature: float = option(
        1.0, "Of the sampling; at 1 the text is as likely as the model says.", above=0
    )
    chat: bool = option(
        False, "Begin where the model's chat template lets a user speak: it writes questions and answers."
    )
    seed: int = option(0, "Of the sampling.", at_least=0)


@takes(SampleOptions)
def sample(model: str | Path, out: str | Path, options: SampleOptions, progress: Reporter = silent) -> Path:
    """Let a language model write, from the token that opens its texts, and save what it wrote as a text file.

    A sample that comes to an end goes on with the next text, as texts follow each other in training.

    Args:
        model: directory or hub name, source or converted.
        out: the text file.
        options: see `SampleOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: about the model. FamilyError: for a model that does not write text by itself.
        UsageError: for a chat template that is not there. OutputError: when `out` cannot be written.
    """
    import torch

    from gqakit.models.running import load_model, load_tokenizer
    from gqakit.models.source import Source

    out = Path(out)
    if not out.parent.is_dir() or out.is_dir():
        raise OutputError(f"samples go into a text file in a directory that exists; {out} is not one")
    source = Source.open(model)
    if source.spec.family.task != "text":
        raise FamilyError(f"{model} is a {source.spec.model_type}, which does not write text from nothing")
    tokenizer = load_tokenizer(source.checkpoint)
    start = _chat_start(tokenizer, model) if options.chat else _start(tokenizer, source.checkpoint.config)
    running: Any = load_model(source.checkpoint, options.precision, options.device)
    torch.manual_seed(options.seed)
    count = -(-options.tokens // options.window)
    written: list[str] = []
    with progress("sample", count * options.window, "tokens") as advance, torch.inference_mode():
        while len(written) < count:
            batch = min(AT_ONCE, count - len(written))
            opening = torch.tensor([start], device=running.device).expand(batch, -1)
            # No eos_token_id: the model goes on behind the end of a text. top_k and top_p as if there were none.
            ids = running.generate(
                input_ids=opening, attention_mask=torch.ones_like(opening), max_new_tokens=options.window,
                do_sample=True, temperature=options.temperature, top_k=0, top_p=1.0, eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id or 0,
            )  # fmt: skip
            written += [_text(tokenizer, row[len(start) :].tolist()) for row in ids]
            advance(batch * options.window)
    try:
        out.write_text("\n\n".join(written) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    return out


def _start(tokenizer: Any, config: dict[str, Any]) -> list[int]:
    """What opens a text: BOS, or as in GPT-2 the token that ends the text before."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, config.get("bos_token_id")):
        if isinstance(token, int):
            return [token]
    raise UsageError(
        "the tokenizer has no token that begins or ends a text, so there is nothing to write from"
    )


def _chat_start(tokenizer: Any, model: str | Path) -> list[int]:
    """A conversation up to where the user's first message begins."""
    mark = "\u241f"  # stands for the message, and is in no template
    text = as_chat(tokenizer, model, mark)
    return tokenizer(text.partition(mark)[0], add_special_tokens=False)["input_ids"]


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as text, with a blank line where a text ended; special tokens are left out."""
    texts: list[list[int]] = [[]]
    for token in ids:
        texts.append([]) if token == tokenizer.eos_token_id else texts[-1].append(token)
    decoded = (tokenizer.decode(part, skip_special_tokens=True).strip() for part in texts)
    return "\n\n".join(text for text in decoded if text)
