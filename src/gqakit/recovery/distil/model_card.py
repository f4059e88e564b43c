"""What uptraining adds to a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqakit.evaluation.measures import number


def uptrained_card(card: str, record: Mapping[str, Any]) -> str:
    """The card with a section on the training; what it said before stays, marked as from before.

    Args:
        card: of the checkpoint that was trained, as `model_card` makes them or any other.
        record: the content of `gqakit-uptrain.json`.
    """
    front, body = _apart(card)
    body = body.replace("No training was done.", "It was then uptrained, see below.")
    body = body.replace("## Measured loss\n", "## Measured loss, before uptraining\n")
    options, result, text = record["options"], record["result"], record["text"]
    weights = ", ".join(f"{name} {value:g}" for name, value in record["losses"].items() if value)
    teacher = record["teacher"]["name"] if record["teacher"] else None
    lines = [
        "## Uptraining",
        "",
        f"- Trained: `{options['train']}`, {result['step']:,} steps of {record['examples_per_step']} windows of "
        f"{options['window']} tokens ({result['tokens']:,} predicted tokens) of {text['name']}",
        f"- Losses: {weights}" + (f"; teacher **{teacher}**" if teacher else ""),
        f"- AdamW, learning rate {result['learning_rate']:g}, {options['lr_scheduler_type']} schedule, "
        f"seed {options['seed']}",
        f"- Kept: the weights after step {result['best_step']:,}, the best on {text['held_out_windows']} "
        "windows not trained on",
        "- Everything else: `gqakit-uptrain.json`, `gqakit-uptrain-metrics.jsonl`",
        "",
        "On the windows not trained on:",
        "",
    ]
    before, after = result["first"], result["best_scores"]
    lines += ["| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {number(before[name])} | {number(after[name])} |" for name in after]
    return front + body.rstrip("\n") + ("\n\n" if body.strip() else "") + "\n".join(lines) + "\n"


def _apart(card: str) -> tuple[str, str]:
    """Front matter and the rest."""
    if card.startswith("---\n") and (end := card.find("\n---\n", 3)) >= 0:
        return card[: end + 5], card[end + 5 :]
    return "", card
