"""Key-driven attention for vision transformers: KDGQA, DGQA, PGQA (arXiv 2408.08454)."""
