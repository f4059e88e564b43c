"""QCQA: evolutionary grouping of heads (arXiv 2406.10247)."""
