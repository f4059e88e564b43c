"""Log-probabilities of a text in llama.cpp, at every position and with any types of the cache, through its C interface.

xllamacpp's library exports it. Structures of parameters come from llama.cpp's own defaults, and the few fields that are set
are found in them by their default values, so that no layout of one release is written down here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""Numbers of ggml's types."""

SCRIPT = """
import ctypes, json, pathlib, sys
import numpy as np
import xllamacpp

path, ids, key, value, flash, threads, out = json.loads(sys.argv[1])
library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))


class Params(ctypes.Structure):  # larger than any: who is called reads and writes its own part
    _fields_ = [("words", ctypes.c_int32 * 128)]


class Batch(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


def function(name, result, *arguments):
    made = getattr(library, name)
    made.restype, made.argtypes = result, list(arguments)
    return made


pointer = ctypes.c_void_p
function("llama_backend_init", None)()
model = function("llama_model_load_from_file", pointer, ctypes.c_char_p, Params)(
    path.encode(), function("llama_model_default_params", Params)())
assert model, "the model does not load"
params = function("llama_context_default_params", Params)()
words = params.words
unset = next(i for i in range(64) if list(words[i : i + 4]) == [-1] * 4)  # scaling, pooling, attention, flash attention
types = next(i for i in range(unset + 4, 100) if list(words[i : i + 2]) == [1, 1])  # f16 and f16
words[0] = words[1] = words[2] = max(256, len(ids))  # context and both sizes of a batch
words[unset + 3], words[types], words[types + 1] = flash, key, value
context = function("llama_init_from_model", pointer, pointer, Params)(model, params)
assert context, "no context in these types"
function("llama_set_n_threads", None, pointer, ctypes.c_int32, ctypes.c_int32)(context, threads, threads)
batch = function("llama_batch_init", Batch, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(len(ids), 0, 1)
batch.count = len(ids)
for i, token in enumerate(ids):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
    batch.seq_id[i][0] = 0
assert function("llama_decode", ctypes.c_int32, pointer, Batch)(context, batch) == 0
vocabulary = function("llama_model_get_vocab", pointer, pointer)(model)
size = function("llama_vocab_n_tokens", ctypes.c_int32, pointer)(vocabulary)
logits = function("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer)(context)
np.save(out, np.ctypeslib.as_array(logits, (len(ids), size)))
"""


def log_probs(
    path: Path, ids: list[int], key: str = "f32", value: str = "f32", *, rotate: bool = True
) -> torch.Tensor:
    """Log-probabilities after each of the tokens, `[tokens, vocabulary]`.

    Args:
        path: a GGUF file. ids: the text, as one sequence.
        key, value: types of the cache; flash attention is on but for f32, as a quantised V needs it.
        rotate: let llama.cpp rotate the heads of quantised types, as it does by itself.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "logits.npy")
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        argument = json.dumps([str(path), ids, TYPES[key], TYPES[value], int(value != "f32"), threads, out])
        environment = {**os.environ, **({} if rotate else {"LLAMA_ATTN_ROT_DISABLE": "1"})}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, argument],
            capture_output=True, text=True, timeout=3600, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.from_numpy(np.load(out)).log_softmax(-1)
