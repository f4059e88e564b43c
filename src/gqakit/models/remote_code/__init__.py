"""The model code that ships in every grouped checkpoint, and nothing else. `gqakit.models.shipping` ships it.

It imports nothing of gqakit but, where that is installed, the kernels that make it faster.
"""
