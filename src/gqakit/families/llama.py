"""Llama and the families that share its attention."""

from __future__ import annotations

from gqakit.families.base import Family

LLAMA = Family("llama")
MISTRAL = Family("mistral")
QWEN2 = Family("qwen2")
QWEN3 = Family("qwen3", key_norm="k_norm")
