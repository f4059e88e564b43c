"""The tokenizer of a checkpoint as GGUF metadata, from `tokenizer.json`.

Two kinds: byte-level BPE (`gpt2` in GGUF), and BPE with byte fallback over text whose spaces are `▁` (`llama`, that
is SentencePiece as Llama 2 has it). How text is split before BPE is code inside llama.cpp, chosen by a name
(`tokenizer.ggml.pre`): the names below stand for splits that are known to be the same, any other split is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError, UsageError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
PRE_OF_REGEX = {
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_TAIL}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_TAIL}": "qwen2",
}
"""Names of splits by one regular expression."""


@dataclass(frozen=True)
class Vocab:
    """What GGUF keeps of a tokenizer; ids are positions in `tokens`.

    `model` is "gpt2" or "llama"; `pre` belongs to the first, `scores` and `space_prefix` to the second.
    """

    model: str
    pre: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    space_prefix: bool
    special_ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_vocab(checkpoint: Checkpoint, pre: str | None = None) -> Vocab:
    """The tokenizer of a checkpoint, with as many tokens as its embedding has rows.

    Args:
        pre: the name of the split, instead of the one that is recognised.

    Raises:
        CheckpointError: there is no `tokenizer.json`, it is malformed, or of a kind that GGUF is not written for.
        UsageError: the split before BPE is not one that is known by name, or `pre` is given for a tokenizer
            without one.
    """
    path = checkpoint.path / "tokenizer.json"
    data = _read_json(path)
    if data is None:
        raise CheckpointError(
            f"{checkpoint.path}: GGUF holds the tokenizer, and there is no tokenizer.json here. Save it with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…) first."
        )
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{path}: a tokenizer of type {model.get('type')!r}; GGUF is written for BPE tokenizers, byte-level or "
            "with byte fallback."
        )
    size = int(checkpoint.config["vocab_size"])
    tokens, types = _tokens(data, size, path)
    merges = _merges(model)
    settings = _read_json(checkpoint.path / "tokenizer_config.json") or {}
    special = _special_ids(checkpoint, settings, tokens)
    add_bos, add_eos = _added(path, settings, special)
    common: dict[str, Any] = {
        "tokens": tokens,
        "special_ids": special,
        "add_bos": add_bos,
        "add_eos": add_eos,
        "chat_template": _chat_template(checkpoint.path, settings),
    }
    if model.get("byte_fallback"):
        if pre is not None:
            raise UsageError(
                f"--tokenizer-pre {pre}: the tokenizer has byte fallback, no split before BPE; leave it out"
            )
        spaced = _byte_types(tokens, types), _scores(tokens, merges)
        return Vocab("llama", None, types=spaced[0], merges=(), scores=spaced[1],
                     space_prefix=_prefixes_space(data), **common)  # fmt: skip
    name = pre or _known_pre(data, path)
    spelled = tuple(f"{left} {right}" for left, right in merges)
    return Vocab("gpt2", name, types=types, merges=spelled, scores=(), space_prefix=False, **common)


def _tokens(data: dict[str, Any], size: int, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every row of the embedding: its text and GGUF's type; rows that no token has are unused."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    known = [(text, index, NORMAL) for text, index in data["model"]["vocab"].items()]
    known += [
        (entry["content"], entry["id"], CONTROL if entry.get("special") else USER_DEFINED)
        for entry in data.get("added_tokens", [])
    ]
    for text, index, kind in known:
        if not 0 <= index < size:
            raise CheckpointError(
                f"{path}: token {text!r} has id {index}, the embedding has {size} rows (vocab_size)."
            )
        tokens[index], types[index] = text, kind
    return tuple(tokens), tuple(types)


def _byte_types(tokens: Sequence[str], types: Sequence[int]) -> tuple[int, ...]:
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    marked = [BYTE if token in names else kind for token, kind in zip(tokens, types, strict=True)]
    return tuple(UNKNOWN if token == "<unk>" else kind for token, kind in zip(tokens, marked, strict=True))


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    return [(left, right) for left, right in pairs]


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> tuple[float, ...]:
    """SentencePiece merges the pair with the best score first: minus the rank of the merge that makes a token."""
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    last = len(merges)
    return tuple(-float(rank.get(token, last)) for token in tokens)


def _known_pre(data: dict[str, Any], path: Path) -> str:
    steps = data.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space"):
        own_regex = parts[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and own_regex:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and own_regex:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not own_regex and parts[0].get("behavior") == "Isolated":
            regex = (parts[0].get("pattern") or {}).get("Regex")
            if regex in PRE_OF_REGEX:
                return PRE_OF_REGEX[regex]
    raise UsageError(
        f"{path}: how text is split before BPE ({', '.join(map(str, kinds))}) is none that gqakit knows llama.cpp's "
        f"name of (known: gpt-2, smollm, {', '.join(PRE_OF_REGEX.values())}). Give the name with --tokenizer-pre; "
        "with a wrong one text is cut into other tokens than the model was trained on."
    )


def _prefixes_space(data: dict[str, Any]) -> bool:
    text = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _special_ids(checkpoint: Checkpoint, settings: dict[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    """Ids of bos, eos, unk and pad as the tokenizer names them, else as the configs do; and eot, where text ends in two
    ways.
    """
    index = {token: i for i, token in enumerate(tokens)}
    generation = _read_json(checkpoint.path / "generation_config.json") or {}
    found: dict[str, int] = {}
    ends: list[int] = []
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        ids = [index[token]] if token in index else []
        for config in (generation, checkpoint.config):
            value = config.get(f"{name}_token_id")
            ids += [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
        ids = [i for i in ids if 0 <= i < len(tokens)]
        if ids:
            found[name] = ids[0]
        ends = ids if name == "eos" else ends
    if others := [i for i in ends if i != found["eos"]]:
        found["eot"] = others[0]
    return found


def _added(path: Path, settings: dict[str, Any], special: dict[str, int]) -> tuple[bool, bool]:
    """Whether encoding a text puts bos before it and eos behind it: found by encoding one."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(path)).encode("a").ids
    bos = bool(ids) and ids[0] == special.get("bos")
    eos = len(ids) > 1 and ids[-1] == special.get("eos")
    said = [settings.get("add_bos_token"), settings.get("add_eos_token")]
    return (bos if said[0] is None else bool(said[0])), (eos if said[1] is None else bool(said[1]))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). Fetch it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(data).__name__}, expected an object.")
    return data
