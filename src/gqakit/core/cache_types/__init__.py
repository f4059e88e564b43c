"""Types in which a KV cache can hold keys and values: what each makes of a head, and the bytes that it takes.

A type is named as engines name it: `f16`, `q8_0`, `q4_0` (llama.cpp), `fp8`, `fp8_per_token_head` (vLLM), `quanto4/64`
and `fp8_per_tensor` (transformers' `QuantizedCache`); for study `int3/32` has 3 bits and a scale for every 32 channels.
`+h` behind a name rotates a head's channels by a Hadamard matrix before they are rounded, and back.
"""

from gqakit.core.cache_types.base import CachePair, CacheType
from gqakit.core.cache_types.named import TYPES, cache_pair, cache_type

__all__ = ["TYPES", "CachePair", "CacheType", "cache_pair", "cache_type"]
