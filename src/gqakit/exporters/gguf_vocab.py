"""The tokenizer of a checkpoint as GGUF metadata, from `tokenizer.json`.

Two kinds: byte-level BPE (`gpt2` in GGUF), and BPE with byte fallback over text whose spaces are `▁` (`llama`, that
is SentencePiece as Llama 2 has it). How text is split before BPE is code inside llama.cpp, chosen by a name
(`tokenizer.ggml.pre`): the names below stand for splits that are known to be the same, any other split is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.checkpoint import Checkpoint
from gqakit.checkpoint.jsonio import parse_object, read_bytes
from gqakit.errors import CheckpointError, UsageError
from gqakit.models.defaults import with_defaults

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

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

    `model` is "gpt2" or "llama"; `pre` belongs to the first, `scores` and `space_prefix` to the second. `types` are
    `gguf.TokenType`s; merges, the ids of special tokens and the chat template are in `special`.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float]
    space_prefix: bool
    special: SpecialVocab

    def add_to(self, writer: GGUFWriter) -> None:
        """Write `tokenizer.*`."""
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        self.special.add_to_gguf(writer, quiet=True)


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
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint.path}: GGUF holds the tokenizer, and there is no tokenizer.json here. Save it with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…) first."
        )
    data = parse_object(read_bytes(path), str(path))
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{path}: a tokenizer of type {model.get('type')!r}; GGUF is written for BPE tokenizers, byte-level or "
            "with byte fallback."
        )
    fallback = bool(model.get("byte_fallback"))
    if fallback and pre is not None:
        raise UsageError(
            f"`tokenizer_pre={pre}`: the tokenizer has byte fallback, no split before BPE; leave it out"
        )
    tokens, types = _tokens(data, int(with_defaults(checkpoint.config)["vocab_size"]), path, fallback)
    special = _special(checkpoint, len(tokens))
    if not fallback:
        return Vocab("gpt2", pre or _known_pre(data, path), tokens, types, [], False, special)
    scores = _scores(tokens, special.merges)
    special.merges, special.load_merges = [], False
    return Vocab("llama", None, tokens, types, scores, _prefixes_space(data), special)


def _tokens(data: dict[str, Any], size: int, path: Path, fallback: bool) -> tuple[list[str], list[int]]:
    """Every row of the embedding: its text and GGUF's type; rows that no token has are unused.

    gguf's own classes of vocabularies promise less: they load the tokenizer by transformers, know no unused rows, and
    give every token the same score.
    """
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(size)]
    types: list[int] = [TokenType.UNUSED] * size
    known = [(text, index, TokenType.NORMAL) for text, index in data["model"]["vocab"].items()]
    known += [
        (entry["content"], entry["id"], TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
        for entry in data.get("added_tokens", [])
    ]
    for text, index, kind in known:
        if not 0 <= index < size:
            raise CheckpointError(
                f"{path}: token {text!r} has id {index}, the embedding has {size} rows (vocab_size)."
            )
        if fallback and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = TokenType.BYTE
        elif fallback and text == "<unk>":
            kind = TokenType.UNKNOWN
        tokens[index], types[index] = text, kind
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """SentencePiece merges the pair with the best score first: minus the rank of the merge that makes a token."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), index)  # "left right"
    return [-float(rank.get(token, len(merges))) for token in tokens]


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
        f"name of (known: gpt-2, smollm, {', '.join(PRE_OF_REGEX.values())}). Give the name as `tokenizer_pre`; "
        "with a wrong one text is cut into other tokens than the model was trained on."
    )


def _prefixes_space(data: dict[str, Any]) -> bool:
    text = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _special(checkpoint: Checkpoint, size: int) -> SpecialVocab:
    """Merges, chat template, ids of bos, eos, unk and pad, and of eot where text ends in two ways.

    What gguf's reader lacks is added: it knows neither generation_config.json nor several ends of text, and of the
    template around a text it reads the words, where a token given as an object escapes it.
    """
    from gguf import SpecialVocab
    from tokenizers import Tokenizer

    folder = checkpoint.path
    # gguf refuses the id -1, which old configs have for "none".
    kinds = [
        kind
        for kind in ("bos", "eos", "unk", "pad")
        if not str(checkpoint.config.get(f"{kind}_token_id")).startswith("-")
    ]
    settings = _settings(folder / "tokenizer_config.json")
    try:
        special = SpecialVocab(folder, load_merges=True, special_token_types=kinds, n_vocab=size)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{folder}: gguf cannot read the tokenizer's files ({error}).") from error
    ids = special.special_token_ids
    for config in (_settings(folder / "generation_config.json"), checkpoint.config):
        for kind in kinds:
            value = config.get(f"{kind}_token_id")
            for index in value if isinstance(value, list) else [value]:
                if isinstance(index, int) and 0 <= index < size:
                    first = ids.setdefault(kind, index)
                    if kind == "eos" and index != first:
                        ids.setdefault("eot", index)
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    for kind, place in (("bos", 0), ("eos", -1)):
        if not isinstance(settings.get(f"add_{kind}_token"), bool):
            special.add_special_token[kind] = bool(encoded) and encoded[place] == ids.get(kind)
    return special


def _settings(path: Path) -> dict[str, Any]:
    return parse_object(read_bytes(path), str(path)) if path.is_file() else {}
