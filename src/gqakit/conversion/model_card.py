"""Model cards: of a converted checkpoint, and what the card of a source says about base model and licence."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load

from gqakit import __version__
from gqakit.conversion.files import CARD_FILE
from gqakit.evaluation.measures import measures_named
from gqakit.evaluation.page.content import scores_of
from gqakit.evaluation.table import EvaluationRow, markdown_table
from gqakit.models.architectures import architecture, auto_classes
from gqakit.models.families import FAMILIES
from gqakit.models.families.base import Family, Task
from gqakit.planning.plan import Plan


def model_card(
    plan: Plan,
    source_path: Path,
    rows: Sequence[EvaluationRow] = (),
    text: str | None = None,
    *,
    repaired: bool = False,
) -> str:
    """The text of `README.md`: base model, licence, what was done, what it cost.

    Args:
        plan: what was done.
        source_path: the source directory, whose card's licence is inherited.
        rows: measured scores, source first; none where nothing was measured.
        text: what they were measured on.
        repaired: whether layers were fitted to the source's afterwards.
    """
    known = {
        **_evaluated(plan, source_path, rows, text),
        **stated_in_card(source_path),
        "base_model": plan.source.name,
    }
    licence = known.get("license")
    budget = plan.budget
    counts = [(g.key.num_groups, g.value.num_groups) for g in plan.groupings]
    heads = f"{min(min(c) for c in counts)} to {max(max(c) for c in counts)}"
    if len({n for c in counts for n in c}) == 1:
        heads = str(counts[0][0])
    body = [
        f"# {plan.source.name} with {_SIZED[plan.sized]} {budget.kv_ratio:.0%}",
        "",
        f"Converted by gqakit {__version__} from **{plan.source.name}** "
        f"({_several(plan.source.num_kv_heads)} KV heads in each of {plan.source.num_layers} layers) "
        f"to {heads} KV heads per layer: {budget.kv_bytes_per_token_before:,} → {budget.kv_bytes_per_token:,} "
        f"bytes of {plan.sized} per token. {_RECOVERY[repaired]}",
        "",
        f"- Licence: {licence or 'that of the base model, whose card states none that could be read'}"
        + (" (inherited from the base model)" if licence else ""),
        f"- Format: `{plan.format}` — {_LOADING[plan.format]}",
        f"- Grouping: `{plan.method}`, allocation `{plan.allocation}`, seed {plan.seed}",
        f"- Merge rule: `{plan.merging.key}` for keys, `{plan.merging.value}` for values",
        *_cache_lines(plan),
        f"- Calibration: {plan.calibrated_on}" + ("" if plan.moments else " (weights only)"),
        *(["- Local repair, its text and every layer's errors: `gqakit-repair.json`"] if repaired else []),
        "- The whole plan: `gqakit-plan.json`",
        *(f"- Note: {note}" for note in plan.notes),
        "",
        *_loading(plan, source_path),
        "## Measured loss",
        "",
    ]
    if rows:
        body += [f"On {text}:", "", markdown_table(rows)]
    else:
        body += [
            f"Not measured. {_measuring(plan)} does it. Error of each layer, relative to losing its heads:",
            "",
        ]
        body += ["| layer | KV heads (K, V) | key error | value error |", "|---|---|---|---|"]
        body += [
            f"| {i} | {k}, {v} | {layer.key_error:.3g} | {layer.value_error:.3g} |"
            for i, (layer, (k, v)) in enumerate(zip(plan.layers, counts, strict=True))
        ]
    return front_matter(known) + "\n".join(body) + "\n"


_PIPELINES: dict[Task, str] = {
    "text": "text-generation",
    "embedding": "feature-extraction",
    "image": "image-feature-extraction",
    "speech": "automatic-speech-recognition",
    "translation": "translation",
    "pair": "zero-shot-image-classification",
}
_OF_HEADS = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForImageClassification": "image-classification",
}
"""What the hub calls the tasks of families, and of other heads on their bodies, where the source's card does not say."""


def _auto_class(family: Family, source_path: Path) -> str:
    """The auto class of transformers that loads the class that the source is; its family's usual one without a config."""
    path = source_path / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {"model_type": family.model_type}
    kind = architecture(config)
    names = [name for name, made in auto_classes(family, kind).items() if made == kind]
    return next((name for name in names if name != "AutoModel"), "AutoModel")


def _evaluated(
    plan: Plan, source_path: Path, rows: Sequence[EvaluationRow], text: str | None
) -> dict[str, Any]:
    """What the model is for, and the scores of the conversion, as the hub reads them."""
    family = FAMILIES.get(plan.source.model_type)
    if family is None:
        return {}
    auto = _auto_class(family, source_path)
    pipeline = _OF_HEADS.get(auto, _PIPELINES[family.task])
    if auto == "AutoModel" and family.task == "text":
        pipeline = "feature-extraction"
    if not rows:
        return {"pipeline_tag": pipeline}
    measures = measures_named(scores := scores_of(rows[-1]))
    results = [
        EvalResult(
            task_type=pipeline, dataset_type="held-out", dataset_name=text or "held-out data",
            metric_type=each.name, metric_name=each.title, metric_value=round(scores[each.name], 6),
        )
        for each in measures if math.isfinite(scores[each.name])
    ]  # fmt: skip
    made = {"model_name": rows[-1].name, "eval_results": results} if results else {}
    return {"pipeline_tag": pipeline, **made}


def _loading(plan: Plan, source_path: Path) -> list[str]:
    """A block of Python that loads it, as the class that the source is."""
    family = FAMILIES.get(plan.source.model_type)
    auto = "AutoModel" if family is None else _auto_class(family, source_path)
    ours = ["import gqakit  # or trust_remote_code=True, which runs the code in the checkpoint"]
    return [
        "## Loading",
        "",
        "```python",
        *(ours if plan.format == "grouped" else []),
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("path/or/name")',
        "```",
        "",
    ]


def _measuring(plan: Plan) -> str:
    """The command that measures; what runs on text takes gqakit's own where none is given."""
    family = FAMILIES.get(plan.source.model_type)
    data = "text" if family is None else family.data
    return "`gqakit evaluate`" + ("" if data == "text" else f" with `--{data}`")


def _cache_lines(plan: Plan) -> list[str]:
    """How to serve a checkpoint whose budget counts on types of the cache."""
    if plan.cache is None:
        return []
    how = f": serve with `{plan.cache.serve}` ({plan.cache.engine})" if plan.cache.serve else ""
    lines = [f"- KV cache: {plan.cache.types}{how}. In 16 bits it computes the same, and takes more."]
    if plan.cache.basis:
        lines.append(
            "- Heads are in a basis in which they round well; what the model computes is the same in any"
        )
    return lines


def front_matter(known: dict[str, Any]) -> str:
    """The head of a card, in YAML, with the fields that are known and those of every card of gqakit's."""
    data = ModelCardData(**known, library_name="transformers", tags=["gqakit", "kv-cache"])
    return f"---\n{data.to_yaml()}\n---\n\n"


_RECOVERY = {
    False: "No training was done.",
    True: "Attention layers were then fitted one by one to the base model's on text; nothing was trained end to end.",
}
_SIZED = {"KV cache": "a KV cache of", "keys and values": "keys and values of"}
_LOADING = {
    "uniform": "an ordinary checkpoint of its family; any engine that runs the base model runs it",
    "grouped": "transformers' `Auto…` classes with gqakit imported, or with `trust_remote_code=True`",
}


_KEPT = ("base_model", "license", "license_name", "license_link", "pipeline_tag")
_LISTED = ("base_model", "license")
"""Those that may be a list: a base model may be merged of more than one."""


def stated_in_card(directory: Path) -> dict[str, Any]:
    """`base_model`, `license` and what else is in `_KEPT`, as far as the card in a directory states it."""
    path = directory / CARD_FILE
    if not path.is_file():
        return {}
    try:
        stated = metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        logging.getLogger("gqakit").warning(
            "%s: not a model card (%s); base model and licence are not carried over", path, error
        )
        return {}
    return {name: stated[name] for name in _KEPT if _is_text(stated.get(name), several=name in _LISTED)}


def _is_text(value: Any, *, several: bool) -> bool:
    texts = value if several and isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)


def _several(counts: int | tuple[int, ...]) -> str:
    """A number, or those that there are: "8 or 12"."""
    return str(counts) if isinstance(counts, int) else " or ".join(map(str, sorted(set(counts))))
