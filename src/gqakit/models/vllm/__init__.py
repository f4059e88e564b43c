"""Grouped checkpoints in vLLM."""
