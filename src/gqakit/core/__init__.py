"""Pure maths on tensors: no input or output, no transformers, no globals."""
