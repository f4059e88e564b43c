"""One forward pass per file, for attention whose own code takes the number of KV heads for granted.

Most families shape keys and values by the width of their projections, and need none. These have a fused projection, a fixed
view, or attention of their own that asks no attention function. Each computes what the family's own does, for any number of
heads; what a family passes and no forward uses goes by in `**kwargs`. A checkpoint carries just its family's.
"""
