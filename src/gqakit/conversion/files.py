"""The names of the files that gqakit adds to a checkpoint: what was planned, what was done to it since, its card."""

from __future__ import annotations

PLAN_FILE = "gqakit-plan.json"
CARD_FILE = "README.md"
CHECKSUM_FILE = "gqakit-checksums.json"
REPAIR_FILE = "gqakit-repair.json"
UPTRAIN_FILE = "gqakit-uptrain.json"
METRICS_FILE = "gqakit-uptrain-metrics.jsonl"
