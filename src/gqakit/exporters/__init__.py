"""Checkpoints written for engines that cannot read them as they are: GGUF, stock uniform checkpoints, ONNX."""
