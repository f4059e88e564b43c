"""The model card of a converted checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gqakit import __version__
from gqakit.evaluation.table import EvaluationRow, markdown_table
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
    licence = inherited_licence(source_path)
    front = ["---", f"base_model: {json.dumps(plan.source.name)}"]
    front += [f"license: {licence}"] if licence else []
    front += ["library_name: transformers", "tags: [gqakit, kv-cache]", "---"]
    budget = plan.budget
    counts = [(g.key.num_groups, g.value.num_groups) for g in plan.groupings]
    heads = f"{min(min(c) for c in counts)} to {max(max(c) for c in counts)}"
    if len({n for c in counts for n in c}) == 1:
        heads = str(counts[0][0])
    body = [
        f"# {plan.source.name} with {_SIZED[plan.sized]} {budget.kv_ratio:.0%}",
        "",
        f"Converted by gqakit {__version__} from **{plan.source.name}** "
        f"({plan.source.num_kv_heads} KV heads in each of {plan.source.num_layers} layers) "
        f"to {heads} KV heads a layer: {budget.kv_bytes_per_token_before:,} → {budget.kv_bytes_per_token:,} "
        f"bytes of {plan.sized} per token. {_RECOVERY[repaired]}",
        "",
        f"- Licence: {licence or 'that of the base model, whose card states none that could be read'}"
        + (" (inherited from the base model)" if licence else ""),
        f"- Format: `{plan.format}` — {_LOADING[plan.format]}",
        f"- Grouping: `{plan.method}`, allocation `{plan.allocation}`, seed {plan.seed}",
        f"- Merge rule: `{plan.merging.key}` for keys, `{plan.merging.value}` for values",
        "- Calibration: " + (f"{plan.moments.tokens:,} tokens" if plan.moments else "none (weights only)"),
        *(["- Local repair, its text and every layer's errors: `gqakit-repair.json`"] if repaired else []),
        "- The whole plan: `gqakit-plan.json`",
        *(f"- Note: {note}" for note in plan.notes),
        "",
        "## Measured loss",
        "",
    ]
    if rows:
        body += [f"On {text}:", "", markdown_table(rows)]
    else:
        body += [
            "Not measured on text. `gqakit evaluate` does it. Error of each layer, relative to losing its heads:",
            "",
        ]
        body += ["| layer | KV heads (K, V) | key error | value error |", "|---|---|---|---|"]
        body += [
            f"| {i} | {k}, {v} | {layer.key_error:.3g} | {layer.value_error:.3g} |"
            for i, (layer, (k, v)) in enumerate(zip(plan.layers, counts, strict=True))
        ]
    return "\n".join([*front, "", *body]) + "\n"


_RECOVERY = {
    False: "No training was done.",
    True: "Attention layers were then fitted one by one to the base model's on text; nothing was trained end to end.",
}
_SIZED = {"KV cache": "a KV cache of", "keys and values": "keys and values of"}
_LOADING = {
    "uniform": "an ordinary checkpoint of its family; any engine that runs the base model runs it",
    "grouped": "transformers' `Auto…` classes with gqakit imported, or with `trust_remote_code=True`",
}


def inherited_licence(source_path: Path) -> str | None:
    """The `license` field in the front matter of the source's own card, or None."""
    card = source_path / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.removeprefix("license:").strip() or None
    return None
